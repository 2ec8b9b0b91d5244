"""Results that take time but are no runs: JSON files, which count while their settings are those wanted."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import naming_damage, read_json, sealed, write_json
from ...records import differing
from ...settings import SettingsError
from ...training.runs import RECORDS_ONLY


@dataclass(frozen=True)
class Stored:
    """One such file.

    **Arguments:**

    - ``path``: the file. ``wanted``: the settings that it must have been made with.
    - ``read``: content → what it says; nothing where it lacks something that is wanted.
    - ``make``: computes the content, without the settings.
    - ``teacher``, ``comparisons``: what that takes: whose layers are profiled, and how often compared.
    """

    path: Path
    wanted: dict
    read: Callable[[dict], Any]
    make: Callable[[], dict]
    teacher: str = ""
    comparisons: int = 0

    def found(self) -> Any:
        """What the file says; nothing where there is none, or one that was made with other settings.

        **Raises:** ``SettingsError`` naming a file that is damaged.
        """
        content = read_json(self.path)
        if content is None or "settings" not in content:
            return None
        with naming_damage(self.path):
            return None if differing(content["settings"], self.wanted) else self.read(content)

    def get(self) -> Any:
        """What the file says, made first where it does not count.

        **Raises:** ``SettingsError`` where it is damaged, or would have to be made while results are drawn
        from their records alone.
        """
        found = self.found()
        if found is not None:
            return found
        if os.environ.get(RECORDS_ONLY):
            raise SettingsError(
                f"{self.path} is missing, and nothing may be trained or measured in its place here"
            )
        write_json(self.path, sealed({"settings": self.wanted, **self.make()}))
        return self.found()

    def files(self) -> tuple[dict, bool]:
        """What it leaves → whether that is there; that is all."""
        return {self.path: self.found() is not None}, True

    @property
    def about(self) -> dict:
        """What decides it."""
        return self.wanted
