"""Code of the user's own, named by an import path: found everywhere alike, held to its contract, noticed when
it changes, and nothing else is run.
"""

import ast
import importlib
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from own_modules import ARMS, DATA, METHODS, METRICS, NETWORKS, TEACHER, cell, forget, line_of, refused
from safetensors.torch import load_file

from pursuhint_lib import similarity, training
from pursuhint_lib.distillers import Signals, Task, distiller
from pursuhint_lib.models import build_model
from pursuhint_lib.paths import CONFIG, ROOT, StudyPaths
from pursuhint_lib.settings import (
    read_profile,
    settings_hash,
    user_code,
)
from pursuhint_lib.settings.user_code import is_import_path, load, look_in, sources


@pytest.fixture
def beside(folder_of_modules):
    """A folder that this process looks in."""
    for name, text in (("my_methods", METHODS), ("my_metrics", METRICS), ("my_networks", NETWORKS)):
        (folder_of_modules / f"{name}.py").write_text(text)
    look_in(folder_of_modules, ())
    return folder_of_modules


@pytest.mark.parametrize(
    ("own", "built_in"),
    [("my_methods:at", "at"), ("my_methods:fitnet", "fitnet"), ("rkd+my_methods:at", "rkd+at")],
)
def test_an_own_method_trains_as_the_built_in_one_it_imitates_bit_for_bit(beside, own, built_in):
    training.train_teacher(TEACHER)
    parts = tuple(distiller(built_in).parts.values())
    found, expected = (training.distill(cell(method, part_weights=parts)) for method in (own, built_in))
    assert found[0].name == expected[0].name, "without hints there is nothing of one's own"
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.name != theirs.name
        assert ours.history == theirs.history
        assert ours.metrics == theirs.metrics
        states = [load_file(StudyPaths("test").weights(record.name)) for record in (ours, theirs)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert ours.settings["sources"] == list(sources("my_methods:at"))
        assert "sources" not in theirs.settings


def test_an_own_metric_gives_the_matrix_of_the_built_in_one_it_imitates(beside):
    generator = torch.Generator().manual_seed(0)
    features = {str(width): torch.randn(40, width, generator=generator) for width in (3, 7, 50)}
    found = similarity.similarity_matrices(features, ["my_metrics:cka", "cka-linear"])
    torch.testing.assert_close(found["my_metrics:cka"], found["cka-linear"], rtol=0, atol=1e-10)
    assert torch.equal(found["my_metrics:cka"], found["my_metrics:cka"].T)
    assert torch.all(found["my_metrics:cka"].diagonal() == 1)
    assert similarity.paper_metrics(["svcca", "r2", "my_metrics:cka"]) == ["r2", "my_metrics:cka"]


def test_an_own_metric_cannot_change_what_the_next_one_gets(beside):
    features = [torch.randn(10, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1)]
    before = [layer.clone() for layer in features]
    assert torch.all(similarity.similarity_matrix(features, "my_metrics:greedy") == 1)
    assert all(torch.equal(*pair) for pair in zip(features, before, strict=True))


# Function → words of the message.
NO_SIMILARITY = {
    "lopsided": ("sub-block 1 of 3 with sub-block 2 of 3", "one way", "the other", "must be symmetric"),
    "far": ("sub-block 1 of 3 with sub-block 2 of 3", "-40", "from -1 to 1"),
    "half": ("sub-block 1 of 3 with itself gives 0.5", "1 for a layer with itself"),
    "lost": ("gives nan", "from -1 to 1"),
    "many": ("gives Tensor of shape (3,)", "a number, or a tensor without dimensions"),
    "words": ("gives str", "a number"),
    "stumbles": (
        f"my_metrics:stumbles failed {line_of(METRICS, 'return x @ y')} my_metrics.py: RuntimeError:",
    ),
}


@pytest.mark.parametrize("name", NO_SIMILARITY)
def test_a_function_that_is_no_similarity_is_refused_with_what_it_gave(beside, name):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(6, width, generator=generator) for width in (3, 3, 4)]
    refused(
        lambda: similarity.similarity_matrix(features, f"my_metrics:{name}"),
        f"my_metrics:{name}",
        *NO_SIMILARITY[name],
    )


def test_an_own_network_is_the_built_in_one_it_imitates(beside):
    models = [training.seeded_model(name, DATA, 5) for name in ("my_networks:resnet14", "resnet14")]
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    records = [
        training.train_teacher(replace(TEACHER, network=name))
        for name in ("my_networks:resnet14", "resnet14")
    ]
    assert records[0].history == records[1].history
    assert records[0].settings["sources"] == list(sources("my_networks:resnet14"))


SIGNALS = Signals([torch.rand(2, 3, 4, 4)], [torch.rand(2, 3, 4, 4)], torch.rand(2, 5), torch.rand(2, 5))
# Call, words of the message.
WRONG = {
    "a typo": (
        lambda: distiller("my_methods:att"),
        ("method my_methods:att must be a Distiller", "att is not there", ".py has at, fitnet"),
    ),
    "no distiller": (lambda: distiller("my_methods:number"), ("number is of type int", "has at, fitnet")),
    "what it imports": (lambda: distiller("my_methods:PerPoint"), ("PerPoint is of type type",)),
    "no build": (lambda: distiller("my_methods:nothing"), ("method my_methods:nothing builds nothing",)),
    "a word for a weight": (
        lambda: distiller("my_methods:heavy"),
        ("weight of method my_methods:heavy is '1000'", "0 or more"),
    ),
    "no module": (
        lambda: distiller("my_method:at"),
        ("no module my_method: there is no my_method.py or my_method/__init__.py in", "mine"),
    ),
    "a module inside a file": (
        lambda: distiller("my_methods.inner:at"),
        ("failed", "'my_methods' is not a package"),
    ),
    "a part of a sum": (
        lambda: distiller("at+my_methods:nope"),
        ("method my_methods:nope", "nope is not there"),
    ),
    "twice in a sum": (lambda: distiller("my_methods:at+my_methods:at"), ("names a part more than once",)),
    "a build that fails": (
        lambda: distiller("my_methods:raising").build(Task()),
        (line_of(METHODS, 'raise KeyError("points")'), "KeyError: 'points'"),
    ),
    "a function for a module": (
        lambda: distiller("my_methods:function").build(Task()),
        ("my_methods:function gives function", "torch.nn.Module"),
    ),
    "a loss that fails": (
        lambda: distiller("my_methods:wrong").build(Task())(SIGNALS),
        (line_of(METHODS, "return signals.student_logits.nowhere"), "AttributeError"),
    ),
    "a vector": (
        lambda: distiller("my_methods:vector").build(Task())(SIGNALS),
        ("loss of method my_methods:vector", "shape (96,)", "scalar"),
    ),
    "a plain number": (
        lambda: distiller("my_methods:count").build(Task())(SIGNALS),
        ("loss of method my_methods:count is int", "scalar tensor"),
    ),
    "a metric's typo": (
        lambda: similarity.check_metric("my_metrics:ckaa"),
        ("metric my_metrics:ckaa must be a function", "has hsic, cka, greedy"),
    ),
    "a metric without a function": (
        lambda: similarity.check_metric("my_metrics:torch"),
        ("torch is of type module",),
    ),
    "a network's typo": (
        lambda: build_model("my_networks:resnet", 10),
        ("my_networks:resnet must be a function", "has resnet14, words, narrow"),
    ),
    "no network": (
        lambda: build_model("my_networks:words", 10),
        ("network my_networks:words gives str", "torch.nn.Module"),
    ),
    "another signature": (
        lambda: build_model("my_networks:narrow", 10),
        ("my_networks:narrow failed: TypeError:", "2 were given"),
    ),
}


@pytest.mark.parametrize(("call", "words"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_in_one_line_that_says_what_would(beside, call, words):
    refused(call, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import torch\nat = (", ("in line 2 of broken.py: SyntaxError",)),
        ("import torch\n\nat = undefined\n", ("in line 3 of broken.py: NameError: name 'undefined'",)),
        (
            "import not_installed_anywhere\n",
            ("in line 1 of broken.py: ModuleNotFoundError: No module named 'not_installed_anywhere'",),
        ),
        ("raise ValueError('two\\nlines')\n", ("ValueError: two lines",)),
    ],
)
def test_a_module_that_cannot_be_imported_says_where(beside, text, words):
    (beside / "broken.py").write_text(text)
    refused(lambda: distiller("broken:at"), "broken:at failed", *words)


@pytest.mark.parametrize(
    "name",
    [
        "my methods:at",
        "my_methods:",
        ":at",
        ":",
        "my_methods::at",
        "a:b:c",
        "my_methods.:at",
        ".my_methods:at",
        "../my_methods:at",
        "/tmp/x:at",
        "my_methods:at()",
        "my_methods:at.build",
        "my_methods:at\n",
        "os.system('true'):at",
        "1a:at",
        "ä:at",
        "my-methods:at",
        "my_methods:at;b",
    ],
)
def test_what_is_no_import_path_is_refused_before_anything_is_imported(beside, name, monkeypatch):
    monkeypatch.setattr(pkgutil, "resolve_name", lambda *_: pytest.fail("something was imported"))
    assert is_import_path(name)
    for call in (
        lambda: distiller(name),
        lambda: build_model(name, 10),
        lambda: similarity.check_metric(name),
        lambda: sources(name),
    ):
        refused(call, "is no import path; write <module>:<name>")


def test_only_one_place_imports_by_name():
    found = set()
    for file in (ROOT / "pursuhint_lib").rglob("*.py"):
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call)
        }
        if any(
            call.endswith(
                ("import_module", "__import__", "exec_module", "resolve_name", "run_module", "run_path")
            )
            for call in calls
        ):
            found.add(file.name)
    # Besides the user's code, only the study's own commands and the imports of what they are forked from.
    assert found == {"user_code.py", "forks.py", "execution.py"}


def test_the_checksum_of_a_file_is_of_that_file_alone(beside):
    (before,) = sources("my_methods:at")
    for name, noticed in (("my_methods.py", True), ("my_metrics.py", False)):
        kept = (beside / name).read_text()
        (beside / name).write_text(kept + "# changed\n")
        user_code._known.clear()
        assert (sources("my_methods:fitnet") != (before,)) == noticed, name
        (beside / name).write_text(kept)
    user_code._known.clear()
    assert sources("my_methods:at", "at+my_methods:fitnet", "kd") == (before,)


def test_the_checksum_of_a_package_is_of_all_its_files_and_not_of_its_place(beside, tmp_path):
    package = beside / "lab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "methods.py").write_text(METHODS)
    (package / "more.py").write_text("")
    assert distiller("lab.methods:at").title == "own AT"
    (before,) = sources("lab.methods:at")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    package.rename(elsewhere / "lab")
    look_in(elsewhere, ())
    forget("lab")
    assert sources("lab.methods:at") == (before,)
    (elsewhere / "lab" / "more.py").write_text("x = 1\n")
    user_code._known.clear()
    assert sources("lab.methods:at") != (before,)


def test_an_edit_makes_another_run_and_a_stale_module_is_refused(beside):
    run = cell("my_methods:at").run(ARMS[1])
    plain, own_teacher = cell("at").run(ARMS[1]), replace(TEACHER, network="my_networks:resnet14")
    runs = run, own_teacher, replace(run, teacher=own_teacher), plain
    hashes = [settings_hash(one) for one in runs]
    distiller("my_methods:at")
    (beside / "my_methods.py").write_text(METHODS.replace("1000.0", "2000.0"))
    refused(
        lambda: look_in(beside, ["at", "rkd+my_methods:at"]),
        "my_methods.py has changed since it was loaded",
        "restart the notebook's kernel",
    )
    assert settings_hash(run) == hashes[0], "what runs in this process is still the old code"
    look_in(beside, ["my_metrics:cka"])
    forget("my_methods")
    assert distiller("my_methods:at").weight == 2000.0
    (beside / "my_networks.py").write_text(NETWORKS + "\n")
    assert [settings_hash(one) != before for one, before in zip(runs, hashes, strict=True)] == [
        True,
        True,
        True,
        False,
    ]
    assert not list(beside.rglob("*.pyc")), "a compiled file could outlive an edit within a second"


def test_a_module_of_another_profiles_folder_is_not_taken_for_this_ones(beside, tmp_path):
    distiller("my_methods:at")
    other = tmp_path / "other"
    other.mkdir()
    (other / "my_methods.py").write_text(METHODS.replace("own AT", "another AT"))
    refused(lambda: look_in(other, ["my_methods:at"]), f"{other} has another my_methods", "restart")
    look_in(other, ["at"])
    assert distiller("my_methods:at").title == "own AT"


def test_a_file_with_the_name_of_another_module_is_refused(beside):
    (beside / "statistics.py").write_text(METHODS)
    refused(
        lambda: distiller("statistics:at"),
        f"{beside / 'statistics.py'} has the name of another module",
        "rename yours",
    )


def test_modules_that_are_installed_are_found_and_their_checksum_taken():
    fits = {"what": "metric", "name": "tabulate:tabulate", "fits": callable, "wanted": "a function"}
    assert load(**fits) is importlib.import_module("tabulate").tabulate
    assert len(sources("tabulate:tabulate")) == 1


SCRIPT = """
import sys
from pathlib import Path
from pursuhint_lib.settings import read_profile
from pursuhint_lib.settings.user_code import load
profile = read_profile(Path(sys.argv[1]))
print(load("method", "plain:answer", lambda found: found == 42, "42"), profile.sources)
"""


def test_every_process_finds_the_same_module_whatever_its_folder(beside, tmp_path):
    text = yaml.safe_dump(
        yaml.safe_load((CONFIG / "smoke.yaml").read_text())
        | {"methods": ["ce", "plain:answer"], "sweeps": []}
    )
    (beside / "plain.py").write_text("answer = 42")
    lone = tmp_path / "lone"
    lone.mkdir()
    for folder in (beside, lone):
        (folder / "mine.yaml").write_text(text)

    def said(folder: Path, file: Path) -> subprocess.CompletedProcess:
        # As the command line and the kernels are started: with their own folder first on the path.
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, str(file)], cwd=folder, capture_output=True, text=True, timeout=120
        )

    first, second = (said(folder, beside / "mine.yaml") for folder in (tmp_path, beside))
    assert first.stdout == second.stdout == f"42 {sources('plain:answer')}\n"
    # The module lies where the command was started, where no other process of the run would look for it.
    assert "SettingsError: no module plain: there is no plain.py" in said(beside, lone / "mine.yaml").stderr


def test_a_profile_names_its_code_wherever_it_stands(beside):
    content = yaml.safe_load((CONFIG / "smoke.yaml").read_text()) | {"name": "mine"}
    content |= {
        "methods": ["at+my_methods:at"],
        "metrics": ["my_metrics:cka"],
        "pairs": [{"teacher": "my_networks:resnet14", "student": "resnet8"}],
    }
    content |= {"sweeps": []}
    (beside / "mine.yaml").write_text(yaml.safe_dump(content))
    profile = read_profile(beside / "mine.yaml")
    assert [source.split()[0] for source in profile.sources] == ["my_methods", "my_metrics", "my_networks"]
    assert profile.pairs[0].name == "my_networks.resnet14-resnet8"
