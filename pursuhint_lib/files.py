"""Writing files whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to write in place of ``path``; it takes the name when all went well and is on the disk, so that no reader sees half a file,
    not even after the power fails.

    The draft's name holds the process number: two processes that write the same file don't mix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        _to_disk(draft)
        draft.replace(path)
        _to_disk(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk and not only in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: dict) -> None:
    """Write JSON with one line per top-level entry, which reads and diffs well."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items())
    with replacing(path) as draft:
        draft.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
