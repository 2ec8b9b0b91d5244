"""What is left in the environment of another training, or of the tools' own settings, decides nothing."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import matplotlib
import pytest
import torch

from pursuhint_lib import inherited
from pursuhint_lib.paths import ROOT, StudyPaths, work_root
from pursuhint_lib.plots.style import new_figure, style
from pursuhint_lib.processes import available_cores
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.engine import execution
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish.page import Page

# Of an earlier torchrun, a pod of Kubeflow, mpirun, accelerate.
TRAINING = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
    "TORCHELASTIC_RUN_ID": "none",
    "PET_NNODES": "2",
    "OMPI_COMM_WORLD_SIZE": "2",
    "ACCELERATE_MIXED_PRECISION": "fp16",
}
TOOLS = {
    "SNAKEMAKE_PROFILE": "slurm",
    "JUPYTER_PATH": "/nowhere",
    "JUPYTER_CONFIG_DIR": "/nowhere",
    "IPYTHONDIR": "/nowhere",
    "MPLBACKEND": "nothing",
    "MATPLOTLIBRC": "/nowhere",
    "PYTHONSTARTUP": "/nowhere.py",
    "GIT_DIR": "/nowhere",
}
KEPT = {
    "CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c",
    "OMP_NUM_THREADS": "1",
    "HTTPS_PROXY": "http://proxy:1",
    "FRANK": "1",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    # What settle writes is undone with the rest.
    for name in (*inherited.FOLDERS, "JUPYTER_PREFER_ENV_PATH"):
        monkeypatch.setenv(name, "/nowhere")
    for name, value in (TRAINING | TOOLS | KEPT).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("command", ["run", "tune", "verify", None])
def test_a_command_inherits_no_other_training_and_no_settings_of_tools(command):
    inherited.settle(command)
    left = {name: os.environ.get(name) for name in TRAINING | TOOLS}
    folders = {name: value for name, value in left.items() if value}
    assert set(folders) == {"JUPYTER_CONFIG_DIR", "IPYTHONDIR"}
    for folder in (os.environ[name] for name in inherited.FOLDERS):
        assert folder.startswith(str(work_root()))
    assert {name: os.environ[name] for name in KEPT} == KEPT


def test_one_of_several_processes_keeps_what_says_which():
    inherited.settle("train")
    assert {name: os.environ.get(name) for name in TRAINING} == TRAINING
    assert "SNAKEMAKE_PROFILE" not in os.environ


def test_a_notebook_that_is_run_by_hand_trains_alone():
    Page(load_profile("smoke"), "00_start_here")
    assert not set(TRAINING) & set(os.environ)
    assert "JUPYTER_PATH" in os.environ


def test_a_command_does_not_wait_for_the_others_of_another_training():
    code = (
        "import runpy, sys; sys.argv = ['pursuhint_lib', 'run', 'nothing']\n"
        "try: runpy.run_module('pursuhint_lib', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 2\n"
        "from pursuhint_lib.training.device import accelerator_for_this_process\n"
        "print(accelerator_for_this_process().num_processes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_command_is_found_from_any_shell_with_a_path_for_cd(shell, tmp_path, monkeypatch):
    (tmp_path / ROOT.name / "workflow").mkdir(parents=True)
    monkeypatch.setenv("CDPATH", f"{tmp_path}:{ROOT.parent}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("raise ImportError('of another environment')")
    command = [shell, f"{ROOT.name}/run_all.sh", "nothing"]
    # The interpreter of these tests, as there may be no .venv.
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown profile 'nothing'; valid: "), done.stderr


def test_a_users_settings_of_matplotlib_do_not_change_figures():
    with style():
        before = dict(matplotlib.rcParams)
    mine = {"axes.facecolor": "black", "lines.linewidth": 9, "axes.grid": True, "savefig.bbox": "tight"}
    with matplotlib.rc_context(mine), style():
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("given", "cards"),
    [
        (None, ["0", "1"]),
        ("3", ["3"]),
        ("5, 2", ["5", "2"]),
        ("GPU-8932f937,GPU-1d8a", ["GPU-8932f937", "GPU-1d8a"]),
        ("MIG-GPU-8932f937/1/0", ["MIG-GPU-8932f937/1/0"]),
        ("2,-1,3", ["2"]),
    ],
)
def test_a_job_gets_a_card_that_was_given(given, cards, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    seen = []

    def job(_command, env):
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        # The next job begins while this one holds its card.
        return execution.run_in_slot(["true"]) if len(seen) < len(cards) else 0

    monkeypatch.setattr(execution.subprocess, "call", job)
    assert execution.run_in_slot(["true"]) == 0
    assert seen == cards


def test_a_slot_without_a_card_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError, match="this machine has none"):
        execution.run_in_slot(["true"])


@pytest.mark.skipif(not shutil.which("taskset"), reason="taskset is one of Linux")
def test_cores_are_those_that_this_process_may_use(monkeypatch):
    code = "from pursuhint_lib.processes import available_cores; print(available_cores())"
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"
    assert available_cores() >= 1
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    assert available_cores() == 1


@pytest.mark.parametrize("name", ["a # b", "key: value", "it's 100 %", "[x]"])
def test_the_engine_takes_a_folder_of_any_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PURSUHINT_WORK", str(tmp_path / name))
    plan = StudyPaths("smoke").plan
    plan.parent.mkdir(parents=True)
    plan.write_text('{"profile": "smoke", "gpus": 0, "forks": "", "steps": []}')
    command = [*execution.engine_command(plan, 1, 0, []), "--dry-run"]
    inherited.settle("run")
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nor_the_note_on_a_published_one():
    profile, drawn = replace(load_profile("smoke"), note="A trial."), []
    for mine in ({}, {"font.family": "monospace", "text.color": "red", "svg.fonttype": "path"}):
        with matplotlib.rc_context(mine):
            figure, axis = new_figure(2)
            axis.plot([1, 2])
            Page(profile, "00_start_here").figure(figure, "line", "A line.")
        drawn.append((StudyPaths("smoke").figures / "00_start_here-line.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert b"A trial." in drawn[0]
