"""What a run is made of: frozen dataclasses, the profile YAML, and the settings hash.

Names of methods, networks and so on are checked where their registries live
(``study.profile``); here the form is checked: known keys, types and ranges.
"""

from .forms import SettingsError, build, choose, resolved, settings_hash
from .profile import Exchange, Launch, Pair, Profile, Stability, Sweep, Weights
from .reading import read_profile
from .runs import PRECISIONS, Arm, Data, DistillSettings, Schedule, StudentSettings, TeacherSettings

__all__ = [
    "PRECISIONS", "Arm", "Data", "DistillSettings", "Exchange", "Launch", "Pair", "Profile", "Schedule", "SettingsError", "Stability",
    "StudentSettings", "Sweep", "TeacherSettings", "Weights", "build", "choose", "read_profile", "resolved", "settings_hash",
]  # fmt: skip
