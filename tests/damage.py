"""What may become of a file on a disk, and what comes of reading it then. Not a test file:
tests/test_corruption.py uses it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pursuhint_lib.data import DataError
from pursuhint_lib.settings import SettingsError


def damages(content: bytes, other: bytes, flips: int) -> dict[str, bytes]:
    """What may become of a file: cut, zeroed, some bits turned over, or that of something else."""
    half, quarter = len(content) // 2, len(content) // 4
    found = {
        "empty": b"",
        "half": content[:half],
        "no end": content[:-10],
        "no beginning": content[10:],
        "zeros": bytes(len(content)),
        "zeros in the middle": content[:quarter] + bytes(half) + content[quarter + half :],
        "another's": other,
    }
    draws = random.Random(0)
    for number in range(flips):
        turned = bytearray(content)
        # One in every stretch of the file.
        place = int((number + draws.random()) * len(content) / flips)
        turned[place] ^= 1 << draws.randrange(8)
        found[f"bit in byte {place}"] = bytes(turned)
    return found


@dataclass(frozen=True)
class Kind:
    """A file, another of its kind, and what reading it gives, for comparison.

    **Arguments:** ``refused``: which damages must be refused, all if not given; the others must be mended.
    ``named``: what the message names.
    """

    path: Path
    other: bytes
    read: Callable[[], object]
    flips: int = 20
    named: tuple[str, ...] = ()


def outcomes(kind: Kind) -> dict[str, str]:
    """Damage → what came of it: ``refused``, ``same`` or ``other``; anything but these is an exception."""
    content, found, messages = kind.path.read_bytes(), {}, {}
    expected = kind.read()
    for name, damaged in damages(content, kind.other, kind.flips).items():
        kind.path.write_bytes(damaged)
        try:
            found[name] = "same" if kind.read() == expected else "other"
        except (SettingsError, DataError) as error:
            found[name], messages[name] = "refused", str(error)
        finally:
            kind.path.write_bytes(content)
    assert kind.read() == expected
    for name, message in messages.items():
        assert "\n" not in message, name
        assert any(named in message for named in (str(kind.path), *kind.named)), (name, message)
    return found
