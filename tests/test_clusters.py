"""The smoke study on clusters: a scheduler made of two shell scripts, and a real SLURM of one node on
loopback.

Each study loses one job half-way, as a preempted or cancelled one is lost. Skipped where Snakemake's executor
plugins or SLURM are not installed: pip install snakemake-executor-plugin-cluster-generic
snakemake-executor-plugin-slurm, apt-get install slurm-wlm munge.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_smoke import STEPS, environment, records

from pursuhint_lib.paths import ROOT

pytestmark = pytest.mark.slow
LOST = "03_distillation-resnet14-resnet8x0.25-at"
DAEMONS = Path(__file__).with_name("slurm_on_loopback.sh")
# A job's number is its process group. Its state stands in a file, which is whole when it is there; without
# one it is running.
SUBMIT = """#!/bin/sh
exec 3>&1 >/dev/null 2>&1 </dev/null
setsid {folder}/job "$1" "$2" 3>&- &
echo $! >&3
"""
JOB = """#!/bin/sh
echo "$$ $1" >> {folder}/starts
if sh "$2" > {folder}/$$.out 2>&1; then state=success; else state=failed; fi
echo $state > {folder}/$$.draft
mv {folder}/$$.draft {folder}/$$.state
"""
STATUS = "#!/bin/sh\ncat {folder}/$1.state 2>/dev/null || echo running\n"
CANCEL = '#!/bin/sh\nfor job in "$@"; do kill -KILL "-$job"; echo failed > {folder}/$job.state; done\n'


def rule_name(step: str) -> str:
    """The workflow's name of a step."""
    return "step_" + "".join(letter if letter.isalnum() else "_" for letter in step)


class Cluster(ABC):
    """A scheduler, and the study that runs on it."""

    def __init__(self, folder: Path):
        self.folder = folder

    @abstractmethod
    def options(self) -> list[str]:
        """Snakemake's options for this scheduler."""

    @abstractmethod
    def jobs(self) -> list[tuple[str, str, str]]:
        """(number, rule, state) of every job there has been, in the scheduler's own words."""

    @abstractmethod
    def cancel(self, job: str) -> None:
        """End a running job from outside."""

    @abstractmethod
    def output(self, job: str) -> str:
        """What an unsuccessful job has printed."""

    @abstractmethod
    def close(self) -> None:
        """End what was started for the scheduler."""

    def environment(self) -> dict:
        return environment(self.folder)

    def start(self) -> subprocess.Popen:
        command = [str(ROOT / "run_all.sh"), "smoke", "--", "--jobs", "2", *self.options()]
        return subprocess.Popen(
            command, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self) -> tuple[int, str]:
        with self.start() as study:
            told = study.communicate(timeout=900)[0]
        return study.returncode, told

    def running(self, step: str) -> str | None:
        """The job of a step that has begun to train."""
        if not (self.folder / "work" / "smoke" / "progress" / f"{step}.json").is_file():
            return None
        return next(
            (job for job, rule, state in self.jobs() if rule == rule_name(step) and state == "RUNNING"), None
        )


class Generic(Cluster):
    """Snakemake's generic cluster executor, with scripts that start a job in the background, tell its state,
    and kill it.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.spool = folder / "jobs"
        self.spool.mkdir()
        for name, text in (("submit", SUBMIT), ("job", JOB), ("status", STATUS), ("cancel", CANCEL)):
            script = self.spool / name
            script.write_text(text.replace("{folder}", str(self.spool)))
            script.chmod(0o755)

    def options(self) -> list[str]:
        commands = [f"--cluster-generic-{name}-cmd" for name in ("submit", "status", "cancel")]
        scripts = [f"{self.spool}/submit {{rule}}", f"{self.spool}/status", f"{self.spool}/cancel"]
        return [
            "--executor",
            "cluster-generic",
            *(word for pair in zip(commands, scripts, strict=True) for word in pair),
        ]

    def jobs(self) -> list[tuple[str, str, str]]:
        starts = self.spool / "starts"
        found = [line.split() for line in starts.read_text().splitlines()] if starts.is_file() else []
        return [(job, rule, self._state(job)) for job, rule in found]

    def _state(self, job: str) -> str:
        file = self.spool / f"{job}.state"
        return (
            {"success": "COMPLETED", "failed": "FAILED"}[file.read_text().strip()]
            if file.is_file()
            else "RUNNING"
        )

    def cancel(self, job: str) -> None:
        subprocess.run([self.spool / "cancel", job], check=True)

    def output(self, job: str) -> str:
        return (self.spool / f"{job}.out").read_text()

    def close(self) -> None:
        """Nothing runs but the jobs."""


class Slurm(Cluster):
    """Snakemake's SLURM executor with the study's profile for it, on a SLURM of one node with two CPUs and
    two GPUs on paper.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        # Pytest's folders have names that are too long for a socket.
        self.home = Path(tempfile.mkdtemp(prefix="slurm-"))
        told = subprocess.run([DAEMONS, "up", self.home / "run"], capture_output=True, text=True, timeout=120)
        assert told.returncode == 0, told.stderr
        shell = subprocess.run(
            ["bash", "-c", f"{told.stdout}\nenv -0"], capture_output=True, text=True, check=True
        )
        self.exported = dict(
            line.split("=", 1)
            for line in shell.stdout.split("\0")
            if line.startswith(("SLURM_CONF=", "PATH="))
        )

    def close(self) -> None:
        subprocess.run([DAEMONS, "down", self.home / "run"], check=True, timeout=120)
        shutil.rmtree(self.home)

    def environment(self) -> dict:
        return {**super().environment(), **self.exported}

    def options(self) -> list[str]:
        resources = ["--default-resources", "slurm_partition=gpu", "gpu=1", "runtime=30", "mem_mb=2000"]
        waits = ["--latency-wait", "10", "--slurm-init-seconds-before-status-checks", "3"]
        return ["--profile", str(ROOT / "workflow" / "slurm"), *resources, *waits]

    def jobs(self) -> list[tuple[str, str, str]]:
        lines = self._ask("squeue", "--states=all", "--noheader", "--format=%i|%k|%T").splitlines()
        return [
            (job, rule.removeprefix("rule_"), state)
            for job, rule, state in (line.split("|") for line in lines)
        ]

    def gpus(self) -> dict[str, str]:
        """Rule → the GPUs that its jobs have asked for."""
        lines = self._ask(
            "squeue", "--states=all", "--noheader", "--Format=Comment:100,tres-per-job:20"
        ).splitlines()
        return {rule.removeprefix("rule_"): gpus for rule, gpus in (line.split() for line in lines)}

    def cancel(self, job: str) -> None:
        self._ask("scancel", job)

    def output(self, job: str) -> str:
        return next(
            (self.folder / "work" / "smoke" / ".snakemake" / "slurm_logs").rglob(f"{job}.log")
        ).read_text()

    def _ask(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=True, timeout=60
        ).stdout


def missing(kind: type[Cluster]) -> str | None:
    """What keeps this scheduler from being tried here."""
    plugin = "cluster_generic" if kind is Generic else "slurm"
    if find_spec(f"snakemake_executor_plugin_{plugin}") is None:
        return f"needs the package snakemake-executor-plugin-{plugin.replace('_', '-')}"
    path = f"{os.environ['PATH']}:/usr/sbin"
    programs = ("munged", "slurmctld", "slurmd", "squeue") if kind is Slurm else ("setsid",)
    absent = [name for name in programs if shutil.which(name, path=path) is None]
    return f"needs {', '.join(absent)}" if absent else None


@pytest.fixture(scope="module", params=[Generic, Slurm], ids=["generic", "slurm"])
def cluster(request, tmp_path_factory):
    """A scheduler without jobs."""
    if (reason := missing(request.param)) is not None:
        pytest.skip(reason)
    made = request.param(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def finished(cluster):
    """A study that has lost a job half-way: exit status, output, the lost job, and the records that there
    were by then.
    """
    with cluster.start() as study:
        try:
            deadline = time.monotonic() + 400
            while (lost := cluster.running(LOST)) is None:
                assert study.poll() is None, study.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            before = records(cluster.folder)
            cluster.cancel(lost)
            told = study.communicate(timeout=600)[0]
        finally:
            if study.poll() is None:
                study.send_signal(signal.SIGTERM)
    return study.returncode, told, lost, before


def test_every_step_is_one_job_and_the_lost_one_is_tried_again(cluster, finished):
    status, told, lost, _ = finished
    assert status == 0, told
    assert f"All {STEPS} steps are done" in told
    jobs = cluster.jobs()
    ended = Counter(rule for _, rule, state in jobs if state == "COMPLETED")
    assert len(ended) == STEPS
    assert set(ended.values()) == {1}
    assert [(job, rule) for job, rule, state in jobs if state != "COMPLETED"] == [(lost, rule_name(LOST))]


def test_steps_that_train_get_one_gpu_each_and_the_others_none(cluster, finished):
    if not isinstance(cluster, Slurm):
        pytest.skip("the scripts deal out no GPUs")
    asked = cluster.gpus()
    assert len(asked) == STEPS
    without = {rule for rule, gpus in asked.items() if gpus == "N/A"}
    assert without == {rule_name("00_start_here"), rule_name("05_results")}
    assert {gpus for rule, gpus in asked.items() if rule not in without} == {"gres:gpu:1"}


def test_nothing_that_was_on_record_is_trained_again(cluster, finished):
    *_, before = finished
    after = records(cluster.folder)
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_a_second_run_gives_the_cluster_nothing_to_do(cluster, finished):
    jobs, before = cluster.jobs(), records(cluster.folder)
    status, told = cluster.run()
    assert status == 0, told
    assert f"Nothing to do: all {STEPS} steps are done and every run is on record" in told
    assert cluster.jobs() == jobs
    assert records(cluster.folder) == before


def test_a_step_that_fails_is_tried_twice_and_no_more(cluster, finished):
    """Snakemake runs inside every job, too; a rule's own ``retries`` would count there again and multiply."""
    weights = next((cluster.folder / "work" / "smoke" / "weights").glob("teacher_resnet14_seed0*"))
    content, known = weights.read_bytes(), cluster.jobs()
    next((cluster.folder / "results" / "smoke" / "records").glob("*_kd_*")).unlink()
    weights.write_bytes(content[:1000])
    status, told = cluster.run()
    weights.write_bytes(content)
    assert status == 1
    assert f"{weights.name} has changed: sha256 is" in told
    failed = [job for job in cluster.jobs() if job not in known]
    assert {state for *_, state in failed} == {"FAILED"}
    assert set(Counter(rule for _, rule, _ in failed).values()) == {2}
    for job, *_ in failed:
        assert "Trying to restart" not in cluster.output(job)


def test_a_study_that_is_ended_takes_its_jobs_along(cluster, finished):
    known = cluster.jobs()
    (cluster.folder / "results" / "smoke" / "figures" / "00_start_here-toy.svgz").unlink()
    with cluster.start() as study:
        deadline = time.monotonic() + 120
        while not any(state == "RUNNING" for *_, state in cluster.jobs()):
            assert study.poll() is None, study.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        study.send_signal(signal.SIGTERM)
        told = study.communicate(timeout=200)[0]
    assert study.returncode == 130, told
    new = [job for job in cluster.jobs() if job not in known]
    assert new
    assert not [job for job in new if job[2] in ("COMPLETED", "PENDING", "RUNNING")]
