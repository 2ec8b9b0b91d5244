"""Writing files whole or not at all, and files that say when they were damaged: any bytes, and JSON."""

import contextlib
import glob
import hashlib
import json
import os
import platform
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from .settings import SettingsError

# The entry of a JSON object that holds the checksum of all others.
SEAL = "sha256"
# This machine, in few characters, for file names have a limit.
HERE = f"{zlib.crc32(platform.node().encode()):08x}"


def draft_beside(path: Path) -> Path:
    """Where to write what shall take the place of a file or folder.

    The name holds machine and process number: two processes that write the same don't mix. Drafts that killed
    processes of this machine have left are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = f"{path.name}.{HERE}-"
    for left in path.parent.glob(f"{glob.escape(stem)}*.tmp"):
        owner = left.name.removeprefix(stem).removesuffix(".tmp")
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{stem}{os.getpid()}.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to write in place of ``path``; it takes the name when all went well and is on the disk, so that
    no reader sees half a file, not even after the power fails.
    """
    draft = draft_beside(path)
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


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checked(path: Path, data: bytes | memoryview) -> None:
    """Write bytes behind a first line with their SHA-256 in hex digits, whole or not at all."""
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(f"{hashlib.sha256(data).hexdigest()}\n".encode())
        file.write(data)


def read_checked(path: Path) -> bytes:
    """The bytes that ``write_checked`` wrote.

    **Raises:** ``OSError`` where there is no such file; ``ValueError`` where it holds something else.
    """
    digest, _, data = path.read_bytes().partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise ValueError("it is not what was written: its first line is the sha256 of something else")
    return data


def stand_in(path: Path) -> str | None:
    """What often comes in the place of a large file, in words; nothing if it is not that."""
    with path.open("rb") as file:
        beginning = file.read(64).lstrip().lower()
    if beginning.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and not the file itself; run git lfs pull where it comes from"
    if beginning.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page and not the file itself; download it anew, and look at the page for why"
    return None


def write_json(path: Path, content: dict) -> None:
    """Write JSON with one line per top-level entry, which reads and diffs well."""
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()
    )
    with replacing(path) as draft:
        draft.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def sealed(content: dict) -> dict:
    """The content with the SHA-256 of its JSON as a last entry, whatever the order and spacing in which the
    JSON is written.

    **Arguments:** ``content`` what JSON can hold, without an entry ``sha256``.
    """
    return {**content, SEAL: _digest(content)}


def unsealed(content: dict) -> dict:
    """The content without its checksum; one that never had any is taken as it is.

    **Raises:** ``ValueError`` where the checksum is of something else, or the content is no JSON object.
    """
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    rest = {key: value for key, value in content.items() if key != SEAL}
    if SEAL in content and content[SEAL] != _digest(rest):
        raise ValueError(f"it is not what was written: its {SEAL} is of something else")
    return rest


def read_json(path: Path) -> dict | None:
    """A stored JSON object, or nothing where there is no file; a damaged one is named."""
    if not path.is_file():
        return None
    try:
        return unsealed(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise SettingsError(f"{path} is damaged ({error}); delete it to make it again") from None


@contextlib.contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Say of a stored object without checksum that it is damaged where something in it is missing or of the
    wrong kind.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())}); delete it to make "
            "it again"
        ) from None


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
