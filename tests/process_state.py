"""Whether a process has ended. Not a test file: tests of signals and of faults use it."""

import time

import psutil


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether within that time there is no such process, or only what its parent has not asked for yet.

    A process closes its files, which is how others see its end, a moment before the system calls it ended.
    """
    end = time.monotonic() + seconds
    while runs(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def runs(pid: int) -> bool:
    """Whether a process is at work or can be."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
