"""The README's commands, paths, numbers and example are those of the code."""

import re
from dataclasses import replace

import yaml

from pursuhint_lib.distillers import DISTILLERS
from pursuhint_lib.models import MODELS
from pursuhint_lib.paths import CONFIG, ROOT
from pursuhint_lib.settings import Pair, Profile, build
from pursuhint_lib.study.__main__ import _parser
from pursuhint_lib.study.profile import checked, load_profile
from pursuhint_lib.study.runs import run_cell
from pursuhint_lib.study.validate import validate

README = (ROOT / "README.md").read_text()


def test_every_linked_file_is_there():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if not t.startswith("http")]
    assert len(targets) > 5
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_every_flag_exists():
    known = {option for action in _parser()._actions for option in action.option_strings}
    used = set(re.findall(r"run_all\.sh[^`\n|]*?(--[a-z][a-z-]+)", README.replace(" -- ", "\0").replace("\0", " \n ")))
    assert used
    assert used <= known


def test_every_profile_is_in_the_table():
    table = README[README.index("## Profiles") : README.index("## What is where")]
    assert {file.stem for file in CONFIG.glob("*.yaml")} == set(re.findall(r"^\| `([\w-]+)`", table, flags=re.M))


def test_the_example_profile_can_be_run():
    (example,) = re.findall(r"```yaml\n(# my_pair\.yaml.*?)```", README, flags=re.S)
    profile = checked(build(Profile, yaml.safe_load(example), "my_pair.yaml"))
    assert profile.pairs[0].k == 3


def test_the_example_method_and_network_train(monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    # What the example adds to the tables is taken out again after the test.
    monkeypatch.setitem(DISTILLERS, "embedded-mse", None)
    monkeypatch.setitem(MODELS, "resnet26x0.5", None)
    exec(example, {})
    pair, methods = Pair("resnet14", "resnet26x0.5"), ("embedded-mse", "at+embedded-mse")
    changes = {"pairs": (pair,), "methods": methods, "arms": ("none", "stage-ends"), "seeds": (0,), "example_pair": None}
    profile = checked(replace(load_profile("smoke"), **changes))
    assert [finding.state for finding in validate(profile)] == ["ok"]
    for method in profile.methods:
        found = run_cell(profile, profile.pairs[0], method)
        assert found["stage-ends"][0].status == "ok"


def test_the_verdicts_are_those_of_the_committed_results():
    shown = re.search(r"<!-- claims:.*?-->\n(.*?)\n<!-- end of claims -->", README, flags=re.S)[1]
    table = (ROOT / "results" / "quick" / "tables" / "05_results-claims.md").read_text()
    assert shown.strip() == table[table.index("|") :].strip()
