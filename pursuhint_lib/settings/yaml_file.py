"""Reading a profile's YAML."""

import re
from pathlib import Path

import yaml

from .profile import Profile
from .user_code import look_in
from .values import SettingsError, build


def read_profile(path: Path) -> Profile:
    """Read a profile YAML.

    **Raises:** ``SettingsError`` when the file is not YAML or has a key or value that does not fit.
    """
    try:
        with path.open("rb") as file:
            content = yaml.load(file, Loader=_SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"{path} is not a YAML file of settings: {' '.join(str(error).split())}; mend it there"
        ) from None
    profile = build(Profile, content, path.name)
    look_in(path.resolve().parent, profile.named)
    return profile


class _SafeLoader(yaml.SafeLoader):
    """Plain values only. A key that is given twice is refused, of which YAML would silently take the last;
    and 1e-3 is a number, as in YAML 1.2, which PyYAML takes for text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given again; leave one of the two", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), [*"-+0123456789"]
)
