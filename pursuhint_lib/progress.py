"""How far long work is: a bar for a person, a status file for the runner of the study.

Under ``run_all.sh`` nobody watches a notebook's output while it runs, and bars would leak into the
stored copies. There ``PURSUHINT_PROGRESS`` names a file that always holds the present state.
"""

import json
import os
import time
from pathlib import Path

from tqdm.auto import tqdm

from .files import replacing

SECONDS_BETWEEN = 2.0


class Progress:
    """Counts ``total`` units of one piece of work.

    **Arguments:**

    - ``label``: what is being done, as a person would say it.
    - ``total``, ``unit``: how many of what.
    """

    def __init__(self, label: str, total: int, unit: str = "epoch", done: int = 0):
        self.label, self.total, self.unit, self.done = label, total, unit, done
        file = os.environ.get("PURSUHINT_PROGRESS")
        # Of processes that train together the first one speaks for all.
        silent = os.environ.get("RANK", "0") != "0"
        self._file = Path(file) if file and not silent else None
        self._bar = (
            None if file or silent else tqdm(total=total, initial=done, desc=label, unit=unit, leave=False)
        )
        self._write()

    def advance(self, figures: str = "") -> None:
        """One more unit is done; ``figures`` says how it went."""
        self.done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(figures)
            self._bar.update()
        self._write(figures)

    def within(self, share: float) -> None:
        """So much of the present unit is done, 0 to 1; told at most every two seconds, so it costs nothing to
        call often.
        """
        if time.monotonic() - self._told < SECONDS_BETWEEN:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(f"{share:.0%} of this {self.unit}")
        self._write(f"{share:.0%} of the next")

    def _write(self, figures: str = "") -> None:
        self._told = time.monotonic()
        if self._file is None:
            return
        state = {
            "label": self.label,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "figures": figures,
        }
        with replacing(self._file) as draft:
            draft.write_text(json.dumps(state))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()
