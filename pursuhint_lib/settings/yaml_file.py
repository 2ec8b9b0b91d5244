"""Reading a profile's YAML."""

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
        text = path.read_text(encoding="utf-8")
        repeated = _repeated(yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(
            f"{path} is not a YAML file: {' '.join(str(error).split())}; mend it there"
        ) from None
    except RecursionError:
        raise SettingsError(
            f"{path} is not a YAML file of settings: it is nested too deeply; write it flat"
        ) from None
    if repeated:
        raise SettingsError(
            f"{path.name} gives {repeated.value!r} again in line {repeated.start_mark.line + 1}; leave one "
            "of the two"
        )
    profile = build(Profile, content, path.name)
    look_in(path.resolve().parent, profile.named)
    return profile


def _repeated(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """The first key that is given twice in one mapping; YAML would silently take the last of its values."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        # What an alias stands for is looked at once, also where it contains itself.
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                return key
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            waiting.append(value)
    return None
