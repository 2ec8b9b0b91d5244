"""When a training is interrupted between two steps: now and then to save its state, and for good when it is
asked to end.
"""

import os
import signal
import threading
import time

import torch

from ..processes import total, world

# Seconds between two checkpoints of an unfinished training, which is what a kill can cost at most; more where
# saving takes longer than this share of the time.
CHECKPOINT_SECONDS = 60.0
SAVING_SHARE = 0.05
# Steps between two looks at the clock, where processes have to agree on what they see.
STEPS_TOGETHER = 10


class Interruptions:
    """Says when to pause, in all processes of a training at the same step. A context, in which SIGTERM is a
    request to end.

    The environment variable ``PURSUHINT_DEADLINE`` is the time (seconds since 1970) from which on training
    has to end.

    **Arguments:** ``device`` of the training.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._deadline = float(os.environ.get("PURSUHINT_DEADLINE", "inf"))
        self._signalled, self._save_at = False, time.monotonic() + CHECKPOINT_SECONDS
        self.reason = ""

    def __call__(self, batch: int) -> bool:
        """Whether to pause before this batch of the epoch."""
        if world() > 1 and batch % STEPS_TOGETHER:
            return False
        return self.look()

    def look(self) -> bool:
        """Whether there is something to pause for; then ``reason`` is not empty if training has to end."""
        seen = [self._signalled, time.time() >= self._deadline, time.monotonic() >= self._save_at]
        signalled, late, due = total(torch.tensor(seen, dtype=torch.float32, device=self._device)).tolist()
        if signalled or late:
            self.reason = "by SIGTERM" if signalled else "at the time given with --max-minutes"
        return bool(signalled or late or due)

    def saved(self, seconds: float) -> None:
        """The state was saved, which took so long."""
        self._save_at = time.monotonic() + max(CHECKPOINT_SECONDS, seconds / SAVING_SHARE)

    def _signal(self, _number, _frame) -> None:
        self._signalled = True

    def __enter__(self):
        # Only the main thread may say what a signal does.
        self._previous = (
            signal.signal(signal.SIGTERM, self._signal)
            if threading.current_thread() is threading.main_thread()
            else None
        )
        return self

    def __exit__(self, *_):
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
