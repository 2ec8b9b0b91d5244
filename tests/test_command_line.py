"""run_all.sh's command line: clear refusals with exit status 2, and answers that train nothing."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from pursuhint_lib import training
from pursuhint_lib.cli import main
from pursuhint_lib.models import build_model, save_weights
from pursuhint_lib.paths import CONFIG, ROOT, StudyPaths
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.engine import execution as engine
from pursuhint_lib.study.engine import run
from pursuhint_lib.study.engine.estimate import Estimate
from pursuhint_lib.study.engine.plan import make_plan, write_plan
from pursuhint_lib.study.engine.take_over import quiet
from pursuhint_lib.study.grid.notes import ANSWER, read_notes
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish.report import conclude

# Threads of the numerical libraries make Python 3.12 and later warn of fork; they are idle here.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

REFUSED = {
    "unknown profile": (["qick"], "did you mean 'quick'"),
    "no such file": (["mine.yaml"], "no profile file mine.yaml"),
    "no cores": (["smoke", "--cores", "0"], "--cores 0 is not possible; give 1 to"),
    "negative cores": (["smoke", "--cores", "-2"], "--cores -2 is not possible"),
}


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    monkeypatch.setattr(training.runs, "fit", lambda *a, **k: pytest.fail("something was trained"))


@pytest.mark.parametrize(("options", "told"), [([], True), (["--plan"], False), (["--force"], False)])
def test_the_answer_on_record_is_told_before_anything_heavy_is_imported(options, told):
    # The engine cannot be imported here, so that nothing follows.
    script = (
        "import sys\nfrom pursuhint_lib.cli import main\n"
        "sys.modules['pursuhint_lib.study.engine.run'] = None\n"
        f"try:\n    main(['run', 'quick', *{options}])\n"
        "except ImportError:\n    sys.exit('torch' in sys.modules)\n"
    )
    environment = {**os.environ, "PURSUHINT_RESULTS": str(ROOT / "results"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = read_notes("quick")[ANSWER][1].splitlines()[0]
    assert done.stdout.startswith(f"On record in results/quick: {answer}") == told
    assert (done.stdout == "") != told


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_command_is_refused_in_one_line(arguments, message, capsys):
    assert main(["run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("arguments", [["smoke", "--plann"], ["smoke", "--cores", "many"]])
def test_an_unknown_flag_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert ended.value.code == 2
    assert "run_all.sh" in capsys.readouterr().err


def profile_file(tmp_path, **changes) -> str:
    content = {**yaml.safe_load((CONFIG / "smoke.yaml").read_text()), "name": "mine", **changes}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def test_plan_lists_every_step_with_time_and_disk(capsys):
    assert main(["run", "smoke", "--plan"]) == 0
    out = capsys.readouterr().out
    assert out.count("about") == 13
    assert "0 of 12 steps are done" in out
    assert "MiB of disk" in out


def test_check_looks_and_trains_nothing(capsys):
    assert main(["run", "smoke", "--check"]) == 0
    out = capsys.readouterr().out
    for line in (
        "profile: smoke",
        "device: ",
        "data: digits: ships with scikit-learn",
        "teacher resnet14: 6 sub-blocks; will be trained",
        "disk: ",
    ):
        assert line in out
    assert "smoke can run." in out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: (root / "pets" / "train").mkdir(parents=True), "pets has no train/<class>/<image>"),
        (
            lambda root: (root / "pets" / "train" / "cat").mkdir(parents=True),
            "pets has no test/<class>/<image> or val/<class>/<image>",
        ),
    ],
    ids=["no classes", "no evaluation images"],
)
def test_an_unusable_folder_is_named_before_anything_runs(make, message, tmp_path, monkeypatch, capsys):
    make(tmp_path / "data")
    file = profile_file(tmp_path, data={"dataset": "imagefolder", "root": "pets", "image_size": 32})
    assert main(["run", file, "--check"]) == 2
    assert message in "".join(capsys.readouterr())
    monkeypatch.setattr(engine.subprocess, "Popen", lambda *a, **k: pytest.fail("the engine was started"))
    assert main(["run", file]) == 2
    assert message in capsys.readouterr().err


def test_a_run_in_which_an_input_changes_says_so(monkeypatch, capsys):
    # The engine has made the steps that were planned, which are not those of now.
    monkeypatch.setattr(run, "execute", lambda *_: 0)
    assert main(["run", "smoke"]) == 1
    said = capsys.readouterr().err
    assert "00_start_here, " in said
    assert "was changed while the run went on" in said
    assert said.count("\n") == 1


def test_force_without_images_sets_nothing_aside(tmp_path, capsys):
    (tmp_path / "data" / "pets" / "train" / "cat").mkdir(parents=True)
    record = StudyPaths("mine").records / "days_of_work.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    file = profile_file(tmp_path, data={"dataset": "imagefolder", "root": "pets", "image_size": 32})
    assert main(["run", file, "--force"]) == 2
    assert "pets has no test/<class>/<image>" in capsys.readouterr().err
    assert record.is_file()


def test_what_is_set_aside_is_all_of_the_results_and_all_that_was_trained():
    paths = StudyPaths("smoke")
    there = [
        paths.records / "r.json",
        paths.results / "alone" / "records" / "a.json",
        paths.kept_weights("t"),
        paths.notebooks / "n.ipynb",
    ]
    worked = [paths.weights("w"), paths.checkpoint("c"), paths.stamp("s", "key")]
    for file in (*there, *worked):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    run._set_aside("smoke")
    assert not paths.results.exists()
    assert not any(file.exists() for file in worked)
    (aside,) = paths.work.glob("set-aside-*")
    moved = {file.name: file.read_text() for file in aside.rglob("*") if file.is_file()}
    assert moved == {file.name: file.name for file in (*there, *worked)}


def test_a_log_of_an_earlier_run_is_no_failure_of_this_one(monkeypatch):
    profile = load_profile("smoke")
    steps = make_plan(profile, "smoke")
    logs = [StudyPaths("smoke").step_log(step.name) for step in steps]
    logs[0].parent.mkdir(parents=True)
    for log in logs:
        log.write_text("ValueError: of last week")

    def ends_after_one_step(*_arguments, **_keywords):
        logs[3].write_text("ValueError: of today")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])

    write_plan(profile, steps, 1, 0)
    monkeypatch.setattr(
        engine, "subprocess", SimpleNamespace(Popen=ends_after_one_step, STDOUT=subprocess.STDOUT)
    )
    monkeypatch.setattr(engine, "forking", lambda *_: contextlib.nullcontext())
    expected = Estimate({step.name: 1.0 for step in steps}, 1, 0, 0.0)
    assert engine.execute("smoke", "a-run", steps, expected, []) == 1
    assert engine.failed_steps("smoke", steps) == [(steps[3].name, "ValueError: of today")]


def last_line(code: str) -> str:
    """What Python says last of what ends it."""
    return (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        .stderr.strip()
        .splitlines()[-1]
    )


KILLED_KERNEL = """
import nbformat, nbclient
cell = nbformat.v4.new_code_cell("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
notebook = nbformat.v4.new_notebook(cells=[cell])
nbclient.NotebookClient(notebook, kernel_name="python3").execute()
"""


@pytest.mark.parametrize(
    "said",
    [
        lambda: last_line(KILLED_KERNEL),
        lambda: last_line(
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(1 << 40)"
        ),
        lambda: last_line("import numpy; numpy.zeros(1 << 50)"),
        lambda: last_line("import torch; torch.empty(1 << 50)"),
        # As torch says it; there may be no GPU here to ask.
        lambda: (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
            "capacity of 79.10 GiB"
        ),
    ],
)
def test_a_step_that_ran_out_of_memory_says_so_and_what_to_do(said):
    steps = make_plan(load_profile("smoke"), "smoke")
    log = StudyPaths("smoke").step_log(steps[0].name)
    log.parent.mkdir(parents=True)
    message = said()
    log.write_text(f"Traceback\n{message}\n")
    [(name, reason)] = engine.failed_steps("smoke", steps)
    assert name == steps[0].name
    assert "memory" in reason.split(":")[0]
    assert "give" in reason
    assert message in reason


def test_a_damaged_table_is_no_traceback():
    profile = load_profile("smoke")
    steps, effects = make_plan(profile, "smoke"), StudyPaths("smoke").tables / "05_results-effects.csv"
    effects.parent.mkdir(parents=True)
    for content in (b"", b"\0" * 100, b"what,was\nonce,here\n"):
        effects.write_bytes(content)
        with pytest.raises(SettingsError, match=r"effects.csv cannot be read .*delete it"):
            conclude(profile, steps, 1.0)


def test_check_says_that_missing_images_would_be_downloaded(tmp_path, capsys):
    file = profile_file(
        tmp_path, data={"dataset": "cifar10"}, pairs=[{"teacher": "resnet14", "student": "resnet8"}]
    )
    assert main(["run", file, "--check"]) == 0
    assert "! data: cifar10 is not in" in capsys.readouterr().out


def test_check_names_a_checkpoint_of_another_network(tmp_path, capsys):
    weights = tmp_path / "teacher.safetensors"
    save_weights(build_model("resnet20", 10, 1), weights)
    assert main(["run", profile_file(tmp_path, checkpoints={"resnet14": str(weights)}), "--check"]) == 2
    assert "✗ teacher resnet14: " in (out := capsys.readouterr().out)
    assert "is a checkpoint of another network: Unexpected" in out


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "flat").write_text("a file where a folder should be")
    monkeypatch.setenv("PURSUHINT_RESULTS", str(tmp_path / "flat" / "results"))
    assert main(["run", "smoke"]) == 2
    err = capsys.readouterr().err
    assert "cannot write to" in err
    assert "PURSUHINT_RESULTS" in err


def test_a_folder_with_braces_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PURSUHINT_WORK", str(tmp_path / "{scratch}"))
    assert main(["run", "smoke"]) == 2
    err = capsys.readouterr().err
    assert "{scratch} has braces in its name" in err
    assert "set PURSUHINT_WORK to another" in err


def test_a_slot_shows_one_gpu_only_and_no_two_jobs_the_same():
    holding = slot_command("import os; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()")
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline().strip() == "0"
        second = subprocess.run(
            slot_command("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"),
            capture_output=True,
            text=True,
            check=True,
        )
        assert second.stdout.strip() == "1"
        first.communicate("\n")


def slot_command(code: str) -> list[str]:
    run = (
        "import torch; torch.cuda.device_count = lambda: 2; from pursuhint_lib.cli import main; raise "
        f"SystemExit(main(['slot', '--', {sys.executable!r}, '-c', {code!r}]))"
    )
    return [sys.executable, "-c", run]


def test_executed_notebooks_lose_what_changes_from_run_to_run():
    pieces = [
        {"output_type": "stream", "name": "stdout", "text": text} for text in (["kept"], ["\n", "as one"])
    ]
    noise = {"output_type": "stream", "name": "stderr", "text": ["12%|#"]}
    cell = {
        "cell_type": "code",
        "id": "f3a9",
        "metadata": {"papermill": {"duration": 1.5}, "tags": ["parameters"]},
        "execution_count": 3,
        "outputs": [pieces[0], noise, pieces[1]],
        "source": [],
    }
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": [cell],
        "metadata": {"kernelspec": kernel, "papermill": {"start_time": "now"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    cleaned = quiet(notebook)
    assert cleaned["cells"][0]["outputs"] == [{**pieces[0], "text": ["kept\n", "as one"]}]
    assert cleaned["cells"][0]["metadata"] == {"tags": ["parameters"]}
    assert "papermill" not in json.dumps(cleaned)
    assert cleaned == quiet(json.loads(json.dumps(notebook)))


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 2), (9, 4)])
def test_steps_with_arms_share_the_cores_that_are_left(cores, threads):
    profile = load_profile("smoke")
    steps = make_plan(profile, "smoke")
    planned = json.loads(write_plan(profile, steps, cores, 0).read_text())["steps"]
    given = {step["name"]: step["threads"] for step in planned}
    # Two methods of the profile have arms.
    assert {name: count for name, count in given.items() if name.startswith("03")} == {
        f"03_distillation-resnet14-resnet8x0.25-{method}": threads for method in ("at", "fitnet")
    }
    assert given["12_without_hints-resnet14-resnet8x0.25"] == 1
    assert given["01_teacher_and_layers-resnet14"] == cores
    # What has its runs on record only draws, many steps at once, and leaves the cores to the others.
    drawn = [replace(step, runs=(1, 1)) if step.parameters.get("method") != "at" else step for step in steps]
    planned = json.loads(write_plan(profile, drawn, cores, 0).read_text())["steps"]
    assert {step["name"]: step["threads"] for step in planned if step["threads"] > 1} == (
        {"03_distillation-resnet14-resnet8x0.25-at": cores} if cores > 1 else {}
    )
