"""One of the processes that train a (pair, method) together: ``python -m pursuhint_lib.study.engine.worker
PROFILE PAIR METHOD``.

Started by notebook 04 (``study.launch``), or on several machines by ``accelerate launch``, which tell each
process its number.
"""

import errno
import shutil
import sys

from ...paths import results_root, work_root
from ...processes import rank
from ...settings import SettingsError
from ...training import Stopped
from ..grid.cells import run_cell
from ..grid.profiles import load_profile

# Exit status of a training that was asked to end and can go on (EX_TEMPFAIL).
STOPPED = 75


def main(source: str, pair: str, method: str) -> int:
    """Train what is missing; what ends it is said in one line that begins with ``error:``."""
    try:
        profile = load_profile(source)
        run_cell(profile, profile.pair(pair), method)
    except (SettingsError, Stopped, OSError) as error:
        if rank() == 0:
            print(f"error: {fault(error) if isinstance(error, OSError) else error}", flush=True)
        return STOPPED if isinstance(error, Stopped) else 2
    return 0


def full_disk() -> str:
    """What to do about a disk on which no space is left, in one line that names it."""
    # A file that could not be written whole is removed again, so that a full disk may show some free space.
    folders = {"WORK": work_root(), "RESULTS": results_root()}
    free = {name: shutil.disk_usage(folder).free for name, folder in folders.items() if folder.is_dir()}
    name = min(free, key=free.get, default="WORK")
    room = f" ({free[name] >> 20} MiB free)" if name in free else ""
    return (
        f"no space left on the disk of {folders[name]}{room}; make room there, or set PURSUHINT_{name} to a "
        "copy of the folder on a larger disk; "
        "what is saved is kept, and the same command goes on from there"
    )


def fault(error: OSError) -> str:
    """What the operating system refuses, and what to do, in one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full_disk()
    where = f" {error.filename}" if error.filename else ""
    if isinstance(error, PermissionError):
        return (
            f"no permission to read or write{where}; change its mode or owner, or run as the user that "
            "it "
            "belongs to"
        )
    return (
        f"{error.strerror or type(error).__name__}:{where} ({type(error).__name__}); when that is "
        "mended, "
        "the same command goes on"
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
