"""Bad input from every door: the message names the culprit and the remedy, on one line, and nothing is
trained.

What test_settings.py, test_study.py and test_command_line.py have in their tables is not repeated here.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pursuhint_lib import clustering, similarity, statistics, training
from pursuhint_lib.cli import main
from pursuhint_lib.distillers import distiller
from pursuhint_lib.paths import CONFIG, NOTEBOOKS
from pursuhint_lib.settings import Pair, SettingsError, read_profile
from pursuhint_lib.study.engine.plan import check_parameters
from pursuhint_lib.study.grid.cells import fork
from pursuhint_lib.study.grid.profiles import load_profile

SMOKE = yaml.safe_load((CONFIG / "smoke.yaml").read_text())
PAIR = SMOKE["pairs"][0]


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    monkeypatch.setattr(training.runs, "fit", lambda *a, **k: pytest.fail("something was trained"))


def refused(message: str, words: tuple[str, ...]) -> None:
    for word in words:
        assert word in message, message
    assert "\n" not in message
    assert len(message) < 2000


# Arguments → words of the message.
COMMANDS = {
    "a folder for a profile": (["config"], ("unknown profile 'config'", "valid: ", "<file>.yaml")),
    "an empty name": ([""], ("unknown profile ''", "valid: ", "quick")),
    "a profile in capitals": (["SMOKE"], ("unknown profile 'SMOKE'", "smoke")),
    "a missing path": (
        ["config/none.yml"],
        ("no profile file config/none.yml", "give the path of one, or a name in config/"),
    ),
    "data that is no folder": (
        ["smoke", "--data", "/nowhere"],
        ("--data /nowhere is no folder", "give the one that holds the data sets"),
    ),
    "no minutes": (["smoke", "--max-minutes", "-3"], ("--max-minutes -3.0", "give a number above 0")),
    "minutes that are none": (
        ["smoke", "--max-minutes", "nan"],
        ("--max-minutes nan", "give a number above 0"),
    ),
    "a slot for nothing": (["slot", "--"], ("slot", "no command", "give the one that needs a GPU")),
    "a slot without GPUs": (
        ["slot", "--", "true"],
        ("slot waits for a GPU", "this machine has none", "run the command without it"),
    ),
}


@pytest.mark.parametrize(("arguments", "words"), COMMANDS.values(), ids=COMMANDS)
def test_a_bad_command_line(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(arguments if arguments[:1] == ["slot"] else ["run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    refused(err.removesuffix("\n"), ("error: ", *words))


USAGES = {
    "a word for minutes": (["smoke", "--max-minutes", "soon"], ("--max-minutes", "'soon'")),
    "half a core": (["smoke", "--cores", "1.5"], ("--cores", "'1.5'")),
    "an option without its value": (["smoke", "--data"], ("--data", "expected one argument")),
    "two profiles": (["smoke", "quick"], ("unrecognized arguments: quick",)),
}


@pytest.mark.parametrize(("arguments", "words"), USAGES.values(), ids=USAGES)
def test_a_bad_option_is_told_with_the_usage(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert ended.value.code == 2
    usage, _, message = capsys.readouterr().err.rpartition("./run_all.sh: error: ")
    assert usage.startswith("usage: ./run_all.sh")
    refused(message.removesuffix("\n"), words)


def changed(dotted: str, value) -> dict:
    """The smoke profile with one entry replaced."""
    content = json.loads(json.dumps(SMOKE)) | {"name": "mine"}
    *parents, last = dotted.split(".")
    inner = content
    for key in parents:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return content


# Entry of the profile, its value, words of the message.
PROFILES = [
    ("weights", {"ce": 0}, ("nothing of the loss of method ce", "weight above 0", "leave it out")),
    ("data.train_images", 5000, ("train_images is 5000", "digits has 1000", "at most that")),
    ("data.test_images", 5000, ("test_images is 5000", "digits has 797", "at most that")),
    ("data.image_size", 32, ("image_size is 32", "digits", "leave it out")),
    ("data.root", "pictures", ("root is given", "digits", "leave it out, or take imagefolder")),
    ("data.classes", 5, ("classes can be given for imagenet", "not for digits")),
    ("data", {"dataset": "imagenet", "classes": 1}, ("classes is 1", "imagenet has 1000", "give 2 to 1000")),
    (
        "data",
        {"dataset": "imagefolder", "root": "none", "image_size": 8},
        ("none has no train/<class>/<image>", "only nothing"),
    ),
    (
        "methods",
        ["ce", "kd"],
        ("shortcut_seeds is 2", "none of the methods has hints", "give 0, or add such a method"),
    ),
    ("pairs", [{**PAIR, "teacher": ""}], ("unknown network ''", "valid: resnet8")),
    (
        "pairs",
        [{**PAIR, "student": "resnet8x0"}],
        ("unknown network 'resnet8x0'", "did you mean 'resnet8x0.5'"),
    ),
    (
        "pairs",
        [{**PAIR, "teacher": "torchvision/resnet999"}],
        ("unknown torchvision network 'resnet999'", "did you mean"),
    ),
    ("arms", ["random-51"], ("unknown arm 'random-51'", "random-<1 … 50>")),
    ("arms", ["random--1"], ("unknown arm 'random--1'", "random-<1 … 50>")),
    ("arms", ["pursuhint-"], ("arm pursuhint-: metric ''", "valid: r2")),
    ("methods", [""], ("unknown method ''", "valid: ce, kd")),
    ("methods", ["at+nope"], ("part of the method at+nope 'nope'", "valid: ")),
    (
        "contrasts",
        {"stage-ends": "never"},
        ("unknown arm of the contrasts 'never'", "valid: none, stage-ends"),
    ),
    ("methods", ["at+"], ("part of the method at+ ''", "valid: ")),
]


@pytest.mark.parametrize(
    ("dotted", "value", "words"), PROFILES, ids=[f"{dotted}={value!a:.30}" for dotted, value, _ in PROFILES]
)
def test_a_bad_profile(dotted, value, words, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(changed(dotted, value)))
    with pytest.raises(SettingsError) as caught:
        load_profile(str(file))
    refused(str(caught.value), words)


WHOLE = yaml.safe_dump(SMOKE)
# Written out, these would be 8 ** 12 words.
GROWING = "- &a [x, x, x, x, x, x, x, x]\n"
for earlier, later in zip("abcdefghijk", "bcdefghijkl", strict=True):
    GROWING += f"- &{later} [{', '.join([f'*{earlier}'] * 8)}]\n"

# Text of the file, words of the message.
FILES = {
    "a key twice": (
        f"{WHOLE}\nseeds: [5]\n",
        ("mine.yaml", "'seeds' is given again", "leave one of the two", "line "),
    ),
    "an inner key twice": (
        WHOLE.replace("dataset: digits", "dataset: digits\n  dataset: cifar10"),
        ("mine.yaml", "'dataset' is given again", "line "),
    ),
    "nested too deeply": ("[" * 3000, ("mine.yaml is not a YAML file", "recursion depth")),
    "code": (
        "!!python/object/apply:os.system ['true']\n",
        ("mine.yaml is not a YAML file", "could not determine a constructor", "line 1"),
    ),
    "a number for a key": ("1: 2\n", ("unknown setting in mine.yaml 1", "valid: name")),
    "nothing for a key": ("~: 2\n", ("unknown setting in mine.yaml 'None'", "valid: name")),
    "a list for a key": ("? [a]\n: 2\n", ("mine.yaml is not a YAML file", "unhashable key", "line 1")),
    "a date for a name": ("name: 2026-01-01\n", ("mine.yaml.name is datetime.date(2026, 1, 1)", "string")),
    "a list that holds itself": (
        WHOLE.replace("name: smoke", "name: &a [*a]"),
        ("mine.yaml.name is [", "[...]", "string"),
    ),
    "two documents": (
        "name: a\n---\nname: b\n",
        ("mine.yaml is not a YAML file", "single document", "mend it there"),
    ),
    "an alias of nothing": (
        "name: *b\n",
        ("mine.yaml is not a YAML file", "undefined alias", "mend it there"),
    ),
    "a long word": (
        WHOLE.replace("profile_images: 100", f"profile_images: '{'9' * 9000}'"),
        ("mine.yaml.profile_images is '999", "...", "integer"),
    ),
    "lists that grow and grow": (GROWING, ("mine.yaml is [", "...", "mapping of settings")),
}


@pytest.mark.parametrize(("text", "words"), FILES.values(), ids=FILES)
def test_a_bad_file(text, words, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_profile(file)
    refused(str(caught.value), words)


IDENTITY = np.eye(5)
FEATURES = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
# Call, words of the message.
CALLS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "a profile that is no text": (lambda: load_profile(5), ("not 5", "a name in config/", "give it as text")),
    "no profile": (lambda: load_profile(None), ("not None", "give it as text")),
    "a parameter": (
        lambda: check_parameters(NOTEBOOKS / "02_hint_points.ipynb", {"K": 3}),
        ("02_hint_points.ipynb 'K'", "valid: profile"),
    ),
    "a notebook's pair": (
        lambda: load_profile("smoke").pair("resnet14"),
        ("unknown pair 'resnet14'", "valid: resnet14-resnet8x0.25"),
    ),
    "a notebook's method": (lambda: distiller("AT"), ("unknown method 'AT'", "valid: ce")),
    "a pair to fork": (
        lambda: fork(load_profile("smoke"), Pair("resnet14", "resnet9")),
        ("unknown network 'resnet9'", "did you mean"),
    ),
    "an arm to fork": (
        lambda: fork(load_profile("smoke"), Pair("resnet14", "resnet8"), arms=("lasts",)),
        ("unknown arm 'lasts'", "did you mean 'last'"),
    ),
    "no seeds to fork": (
        lambda: fork(load_profile("smoke"), Pair("resnet14", "resnet8"), seeds=()),
        ("Profile.seeds is ()", "at least one"),
    ),
    "half a point": (
        lambda: clustering.choose_hint_points(IDENTITY, 2.5),
        ("k is 2.5", "give k between 1 and 5"),
    ),
    "a truth for k": (
        lambda: clustering.choose_hint_points(IDENTITY, True),
        ("k is True", "give k between 1 and 5"),
    ),
    "too many segments": (
        lambda: clustering.segment_middles(3, 5),
        ("k is 5", "3 sub-blocks", "give k between"),
    ),
    "no segments": (lambda: clustering.segment_middles(3, 0), ("k is 0", "give k between")),
    "more points than layers": (
        lambda: clustering.random_points(5, 6, 1),
        ("only 0 different sets of 6 among 5 sub-blocks", "1 random arms"),
    ),
    "a metric": (
        lambda: similarity.similarity_matrix([FEATURES], "cka"),
        ("unknown metric 'cka'", "valid: r2"),
    ),
    "a bandwidth": (
        lambda: similarity.rbf_cka(FEATURES, FEATURES, bandwidth=0.0),
        ("bandwidth is 0.0", "above 0"),
    ),
    "other images": (
        lambda: similarity.linear_cka(FEATURES, FEATURES[:4]),
        ("sub-block 2 of 2", "(4, 2)", "expected [8, channels]"),
    ),
    "a single image": (
        lambda: similarity.linear_cka(FEATURES[:1], FEATURES[:1]),
        ("sub-block 1 of 2", "leave that sub-block out"),
    ),
    "a margin": (
        lambda: statistics.equivalence_p(statistics.Effect(2, 0.5, 2, 3), 0),
        ("margin is 0", "above 0"),
    ),
    "a margin that is none": (
        lambda: statistics.equivalence_p(statistics.Effect(2, 0.5, 2, 3), math.nan),
        ("margin is nan", "above 0"),
    ),
    "no probability": (lambda: statistics.holm([0.5, 2.0]), ("[2.0]", "between 0 and 1")),
    "a missing probability": (lambda: statistics.holm([0.5, math.nan]), ("[nan]", "between 0 and 1")),
}


@pytest.mark.parametrize(("call", "words"), CALLS.values(), ids=CALLS)
def test_a_bad_call(call, words):
    with pytest.raises((ValueError, KeyError)) as caught:
        call()
    refused(str(caught.value), words)


def test_an_option_that_the_engine_refuses_is_told_in_its_words(capsys, tmp_path, monkeypatch):
    assert main(["run", "smoke", "--", "--no-such-option"]) != 0
    err = capsys.readouterr().err
    assert "error: the engine ended before any step: " in err
    assert "--no-such-option" in err
    assert not list(Path(tmp_path / "results").rglob("*.json"))
