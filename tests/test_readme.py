"""The README's commands, paths, numbers and example are those of the code."""

import re

import yaml

from pursuhint_lib.paths import CONFIG, ROOT
from pursuhint_lib.settings import Profile, build
from pursuhint_lib.study.__main__ import _parser
from pursuhint_lib.study.profile import checked

README = (ROOT / "README.md").read_text()


def test_every_linked_file_is_there():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if not t.startswith("http")]
    assert len(targets) > 5
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_every_flag_exists():
    known = {option for action in _parser()._actions for option in action.option_strings}
    used = set(re.findall(r"run_all\.sh[^`\n|]*?(--[a-z]+)", README.replace(" -- ", "\0").replace("\0", " \n ")))
    assert used
    assert used <= known


def test_every_profile_is_in_the_table():
    table = README[README.index("## Profiles") : README.index("## What is where")]
    assert {file.stem for file in CONFIG.glob("*.yaml")} == set(re.findall(r"^\| `([\w-]+)`", table, flags=re.M))


def test_the_example_profile_can_be_run():
    (example,) = re.findall(r"```yaml\n(# my_pair\.yaml.*?)```", README, flags=re.S)
    profile = checked(build(Profile, yaml.safe_load(example), "my_pair.yaml"))
    assert profile.pairs[0].k == 3


def test_the_verdicts_are_those_of_the_committed_results():
    shown = re.search(r"<!-- claims:.*?-->\n(.*?)\n<!-- end of claims -->", README, flags=re.S)[1]
    table = (ROOT / "results" / "quick" / "tables" / "05_results-claims.md").read_text()
    assert shown.strip() == table[table.index("|") :].strip()
