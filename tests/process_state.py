"""Whether a process has ended. Not a test file: tests of signals and of faults use it."""

from pathlib import Path


def gone(pid: int) -> bool:
    """Whether there is no such process, or only what its parent has not asked for yet."""
    return (
        not Path(f"/proc/{pid}").exists()
        or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    )
