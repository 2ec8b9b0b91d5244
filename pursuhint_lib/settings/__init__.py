"""What a run is made of: frozen dataclasses, the profile YAML, and the settings hash.

Names of methods, networks and so on are checked where their registries live
(``study.profile``); here the form is checked: known keys, types and ranges.
"""

from .profile import Exchange, Launch, Pair, Profile, Stability, Sweep, Tuning, Weights
from .runs import PRECISIONS, Arm, Data, DistillSettings, Schedule, StudentSettings, TeacherSettings
from .values import SettingsError, brief, build, choose, resolved, settings_hash, validated
from .yaml_file import read_profile
