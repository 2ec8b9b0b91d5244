"""What ends a command, in one line and with an exit status."""

import errno
import shutil

from .paths import results_root, work_root
from .settings import SettingsError

# Exit status of a command that cannot be done as it is asked for.
REFUSED = 2
# Exit status of a training that was asked to end and can go on (EX_TEMPFAIL).
STOPPED = 75


class Stopped(Exception):
    """A training that was asked to end before its end; its state is saved."""


def told(error: Exception) -> tuple[str, int] | None:
    """What to say of an error, and the exit status; nothing where it is a mistake of the program."""
    if isinstance(error, OSError):
        return fault(error), REFUSED
    if isinstance(error, (SettingsError, Stopped)):
        return str(error), STOPPED if isinstance(error, Stopped) else REFUSED
    return None


def full_disk() -> str:
    """What to do about a disk on which no space is left, in one line that names it."""
    # A file that could not be written whole is removed again, so that a full disk may show some free space.
    folders = {"WORK": work_root(), "RESULTS": results_root()}
    free = {name: shutil.disk_usage(folder).free for name, folder in folders.items() if folder.is_dir()}
    name = min(free, key=free.get, default="WORK")
    room = f" ({free[name] >> 20} MiB free)" if name in free else ""
    return (
        f"no space left on the disk of {folders[name]}{room}; make room there, or set PURSUHINT_{name} to a "
        "copy of the folder on a larger disk; what is saved is kept, and the same command goes on from there"
    )


def fault(error: OSError) -> str:
    """What the operating system refuses, and what to do, in one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full_disk()
    where = f" {error.filename}" if error.filename else ""
    if isinstance(error, PermissionError):
        return f"no permission to read or write{where}; change its mode or owner, or run as its user"
    what = error.strerror or type(error).__name__
    return f"{what}:{where} ({type(error).__name__}); when that is mended, the same command goes on"
