"""One of the processes that train a (pair, method) together: ``python -m pursuhint_lib.study.worker PROFILE PAIR METHOD``.

Started by notebook 04 (``study.launch``), or on several machines by ``accelerate launch``, which tell each process its number.
"""

import sys

from ..processes import rank
from ..settings import SettingsError
from ..training import Stopped
from .profile import load_profile
from .runs import run_cell

# Exit status of a training that was asked to end and can go on (EX_TEMPFAIL).
STOPPED = 75


def main(source: str, pair: str, method: str) -> int:
    """Train what is missing; what ends it is said in one line that begins with ``error:``."""
    try:
        profile = load_profile(source)
        run_cell(profile, profile.pair(pair), method)
    except (SettingsError, Stopped) as error:
        if rank() == 0:
            print(f"error: {error}", flush=True)
        return STOPPED if isinstance(error, Stopped) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
