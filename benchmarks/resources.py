"""What a process takes of the machine while it works."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def anonymous_bytes() -> int:
    """Memory of this process that is not backed by a file (Linux)."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


@contextmanager
def sampled_memory() -> Iterator[list[int]]:
    """Anonymous memory at the start and every 20 ms from then on."""
    samples, stop = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            samples.append(anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        stop.set()
        watcher.join()


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Holds, when it is over, the most memory in GB that this process and its workers had meanwhile."""
    found, over = [], threading.Event()
    process = psutil.Process()

    def now() -> float:
        sizes = [process.memory_info().rss]
        for child in process.children(recursive=True):
            try:
                sizes.append(child.memory_info().rss - child.memory_info().shared)
            except psutil.NoSuchProcess:
                continue
        return sum(sizes) / 1e9

    def watch() -> None:
        most = now()
        while not over.wait(0.05):
            most = max(most, now())
        found.append(
            max(most, now())
        )  # once more at the end, as work that is shorter than the pause has an end only

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def held_bytes() -> int:
    """Memory of this process that is in RAM."""
    return psutil.Process().memory_info().rss


def foreign_seconds() -> float:
    """Processor seconds, since the machine started, that did not go into this program and the processes it
    has waited for.
    """
    machine, own = psutil.cpu_times(), os.times()
    return (
        sum(machine)
        - machine.idle
        - getattr(machine, "iowait", 0)
        - (own.user + own.system + own.children_user + own.children_system)
    )
