"""The whole study on its smallest profile, through run_all.sh: it ends well, repeats nothing, and survives
being killed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from test_inherited import TOOLS, TRAINING

from pursuhint_lib.cli import main
from pursuhint_lib.files import sealed, unsealed, write_json
from pursuhint_lib.paths import NOTEBOOKS, ROOT
from pursuhint_lib.study.publish import verify

STEPS = 12
# What 05_results and its predecessors must have published.
FIGURES = (
    "00_start_here-toy",
    "01_teacher_and_layers-resnet14-curve",
    "02_hint_points-resnet14-3-similarity",
    "02_hint_points-resnet14-3-depth",
    "02_hint_points-resnet14-3-ablation",
    "02_hint_points-resnet14-3-stability",
    "02_hint_points-resnet14-3-margins",
    "03_distillation-resnet14-resnet8x0.25-at-curves",
    "03_distillation-resnet14-resnet8x0.25-at-differences",
    "05_results-accuracy-resnet14-resnet8x0.25",
    "05_results-stage-ends-resnet14-resnet8x0.25",
    "05_results-compression",
    "05_results-effects",
    "05_results-hints",
    "08_export-costs-resnet14",
    "11_tuning-resnet14-resnet8x0.25-fitnet-curve",
    "12_without_hints-resnet14-resnet8x0.25-gains",
    "13_population-resnet14-resnet8x0.25-ranks",
    "13_population-resnet14-resnet8x0.25-places",
)
TABLES = (
    "01_teacher_and_layers-resnet14-sub-blocks",
    "02_hint_points-resnet14-3-points",
    "02_hint_points-resnet14-3-stability",
    "05_results-methods",
    "05_results-networks",
    "05_results-effects",
    "08_export-costs",
    "11_tuning-resnet14-resnet8x0.25-fitnet-curve",
)


def environment(folder: Path) -> dict:
    """As in a shell of another training, with settings of tools and a home folder that is not for writing."""
    return {
        **os.environ,
        **TRAINING,
        **TOOLS,
        "HOME": "/proc",
        "PURSUHINT_RESULTS": str(folder / "results"),
        "PURSUHINT_WORK": str(folder / "work"),
    }


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [str(ROOT / "run_all.sh"), "smoke", *arguments]
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=900)


def records(folder: Path) -> dict[str, int]:
    """Name → time of writing, which changes when a run is repeated."""
    return {
        file.name: file.stat().st_mtime_ns
        for file in (folder / "results" / "smoke" / "records").glob("*.json")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that was killed in the middle and then run to its end, with what was there at the kill."""
    folder = tmp_path_factory.mktemp("study # one")
    with subprocess.Popen(
        [str(ROOT / "run_all.sh"), "smoke"], env=environment(folder), stdout=subprocess.DEVNULL
    ) as first:
        deadline = time.monotonic() + 600
        # Some students are done, others are not.
        while not any(name.startswith("resnet8") for name in records(folder)):
            assert first.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    before = records(folder)
    begun = time.monotonic()
    second = run(folder)
    return folder, before, second, time.monotonic() - begun


def test_a_killed_study_goes_on_and_repeats_no_finished_run(finished):
    folder, before, second, _ = finished
    assert second.returncode == 0, second.stdout + second.stderr
    after = records(folder)
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_every_notebook_is_executed_without_error_and_without_noise(finished):
    folder, *_ = finished
    executed = sorted((folder / "results" / "smoke" / "notebooks").glob("*.ipynb"))
    assert len(executed) == STEPS
    # They have tests of their own.
    left_out = {"04_imagenet", "09_hint_weight", "10_deepest_point", "14_teachers", "15_named_before"}
    assert {file.stem.split("-")[0] for file in executed} == {
        file.stem for file in NOTEBOOKS.glob("*.ipynb")
    } - left_out
    for file in executed:
        text = file.read_text()
        outputs = [
            output
            for cell in json.loads(text)["cells"]
            if cell["cell_type"] == "code"
            for output in cell["outputs"]
        ]
        assert outputs
        assert not [
            output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"
        ]
        assert "it/s" not in text
        assert str(folder) not in text
        assert file.stat().st_size < 1_000_000


def test_figures_and_tables_are_there_in_every_form(finished):
    folder, *_ = finished
    results = folder / "results" / "smoke"
    for name in FIGURES:
        for ending in (".png", ".svg", ".md"):
            assert (results / "figures" / f"{name}{ending}").stat().st_size > 40, name
        noted = "Smoke profile" in (results / "figures" / f"{name}.svg").read_text()
        # The toy is of no profile.
        assert noted == (name != "00_start_here-toy"), name
    for name in TABLES:
        for ending in (".csv", ".md", ".tex"):
            assert (results / "tables" / f"{name}{ending}").stat().st_size > 40, name
    effects = pd.read_csv(results / "tables" / "05_results-effects.csv")
    assert effects.groupby("minus").size().eq(2).all()
    words = effects["word"].str.replace(r" within.*", "", regex=True)
    assert set(words) <= {"better", "worse", "the same", "not known", "not tested: the same layers"}


def test_the_grid_takes_the_weight_that_was_tuned_on_other_images_and_seeds(finished):
    results = finished[0] / "results" / "smoke"
    weights = unsealed(json.loads((results / "weights.json").read_text()))["resnet14-resnet8x0.25"]
    assert weights.keys() == {"fitnet"}
    found = [
        json.loads(file.read_text())["settings"]
        for file in (results / "records").glob("resnet8x0.25_from_resnet14_fitnet_layer1*.json")
    ]
    tuning, grid = (
        [run for run in found if (run["data"]["held_out"] is not None) == searched]
        for searched in (True, False)
    )
    assert {run["seed"] for run in tuning} == {100}
    assert not {run["seed"] for run in grid} & {100}
    three = [run["hint_weight"] for run in grid if len(run["teacher_points"]) == 3]
    assert three == [pytest.approx(weights["fitnet"]["weight"])] * len(three)
    assert len(three) > 4


def test_the_grid_has_a_random_set_by_stages_and_the_population_of_them(finished):
    results = finished[0] / "results" / "smoke"
    arms = pd.read_csv(results / "tables" / "05_results-accuracy-resnet14-resnet8x0.25.csv")["arm"]
    sets = [f"stage-set-{a}-{b}-{c}" for a in (1, 2) for b in (3, 4) for c in (5, 6)]
    assert {"stage-random-1", *sets} < {*arms}
    effects = pd.read_csv(results / "tables" / "05_results-stage-ends.csv")
    # The stage ends are one of the sets; none of them stays without a word.
    assert effects.set_index("arm").loc["stage-set-2-4-6", "word"].eq("not tested: the same layers").all()
    assert effects["word"].notna().all()


def test_the_end_counts_what_is_drawn_and_tells_the_effects(finished):
    folder, _, second, _ = finished
    results = folder / "results" / "smoke"
    assert f"figures: {len([*results.glob('figures/*.svg')])}" in second.stdout
    effects = pd.read_csv(results / "tables" / "05_results-effects.csv")
    assert "PURSUhInT's layers against others" in second.stdout
    assert second.stdout.count(", minus ") == len(effects)


def test_a_second_run_trains_nothing_and_says_so(finished):
    folder, *_ = finished
    before = records(folder)
    again = run(folder)
    assert again.returncode == 0
    assert (
        f"Nothing to do: all {STEPS} steps are done and every run is on record; nothing is trained."
        in again.stdout
    )
    assert records(folder) == before


def test_a_failing_notebook_ends_the_run_with_the_reason_and_a_lost_figure_is_made_again(finished):
    folder, *_ = finished
    figure = folder / "results" / "smoke" / "figures" / "05_results-effects.svg"
    content, before = figure.read_bytes(), records(folder)
    figure.unlink()
    figure.mkdir()
    failing = run(folder)
    assert failing.returncode == 1
    assert (
        f"step 05_results failed: IsADirectoryError: [Errno 21] Is a directory: '{figure}'" in failing.stderr
    )
    figure.rmdir()
    again = run(folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (
        f"{STEPS - 1} of {STEPS} steps are done; every run is on record, nothing is trained" in again.stdout
    )
    assert figure.read_bytes() == content, "the same numbers give the same picture"
    assert records(folder) == before


def test_an_edited_record_is_named_before_anything_runs(finished):
    folder, *_ = finished
    record = next((folder / "results" / "smoke" / "records").glob("*_kd_*"))
    content = record.read_text()
    other = unsealed(json.loads(content))
    other["settings"]["method"] = "ce"
    try:
        write_json(record, sealed(other))
        edited = run(folder)
    finally:
        record.write_text(content)
    assert edited.returncode == 2
    assert (
        f"{record.name} was made with other settings (method) than its name says; delete it to run again"
        in edited.stderr
    )


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the results, to be spoilt."""
    return Path(shutil.copytree(finished[0] / "results" / "smoke", tmp_path / "copy" / "smoke"))


def digit_changed(file: Path, pattern: str) -> str:
    """Add one to the last digit of the first number that follows the pattern; the file's name is returned."""
    changed, times = re.subn(
        rf"({pattern}-?[0-9.]*)(\d)",
        lambda found: f"{found[1]}{(int(found[2]) + 1) % 10}",
        file.read_text(),
        count=1,
    )
    assert times == 1
    file.write_text(changed)
    return "/".join(file.parts[-2:])


EDITS = {
    "records": ("*_at_*.json", '"accuracy": '),
    "tables": ("05*-effects.csv", ",AT,"),
    "figures": ("05*-effects.svg", 'd="M '),
    "hints": ("*-similarity.json", '"r2": \\[\\[1.0, '),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_number_is_named_by_its_checksum(copied, kind, capsys):
    pattern, before = EDITS[kind]
    name = digit_changed(sorted((copied / kind).glob(pattern))[0], before)
    assert main(["verify", str(copied)]) == 1
    assert capsys.readouterr().err == f"error: {name} has changed\n"


def test_what_the_records_do_not_give_is_named_whatever_the_checksums_say(copied, monkeypatch, capsys):
    names = [
        digit_changed(sorted((copied / kind).glob(EDITS[kind][0]))[0], EDITS[kind][1])
        for kind in ("figures", "tables")
    ]
    verify.write_sums(copied)
    plan = verify.make_plan
    # One notebook will do here.
    monkeypatch.setattr(
        verify, "make_plan", lambda *profile: [step for step in plan(*profile) if step.name == "05_results"]
    )
    assert main(["verify", str(copied)]) == 1
    found = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("error: ") and "05_results" in line
    ]
    assert found == [f"error: {name} is not what the records give" for name in names]


@pytest.mark.slow
def test_results_are_what_their_records_give_bit_for_bit(finished, copied):
    def command() -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "pursuhint_lib", "verify", str(copied)],
            capture_output=True,
            text=True,
            timeout=900,
        )

    fresh = command()
    assert fresh.returncode == 0, fresh.stderr
    assert re.fullmatch(
        rf"{copied}: all \d+ files have .*; {STEPS} notebooks, .* give the same \d+ files\.\n", fresh.stdout
    )
    # An accuracy that was edited with all care, and found by what it leads to.
    found = {
        file: unsealed(json.loads(file.read_text()))
        for file in (copied / "records").glob("*_fitnet_layer1.1+layer2.1+layer3.1_seed0_*")
    }
    record, content = next(pair for pair in found.items() if pair[1]["settings"]["precision"] == "fp32")
    content["metrics"]["accuracy"] += 1
    write_json(record, sealed(content))
    (copied / verify.sums_file(copied)).unlink()
    edited = command()
    assert edited.returncode == 1
    assert f"note: {copied} has no SHA256SUMS" in edited.stderr
    assert "error: tables/05_results-effects.csv is not what the records give" in edited.stderr
    assert not re.search(r"error: .*/0[12]_", edited.stderr), "what does not depend on it is as it was"
    # Nothing takes the place of a record that is gone.
    record.unlink()
    lacking = command()
    assert lacking.returncode == 1
    assert f"SettingsError: record {record.stem} is missing, and nothing may be trained" in lacking.stderr


@pytest.mark.slow
def test_a_training_that_fails_loses_nothing(finished):
    folder, *_ = finished
    weights = next((folder / "work" / "smoke" / "weights").glob("teacher_resnet14_seed0*"))
    before, content = records(folder), weights.read_bytes()
    removed = next(name for name in before if "_kd_" in name)
    weights.write_bytes(content[:1000])
    (folder / "results" / "smoke" / "records" / removed).unlink()
    failing = run(folder)
    assert failing.returncode == 1
    assert "step 12_without_hints-resnet14-resnet8x0.25 failed: " in failing.stderr
    assert f"{weights.name} has changed: sha256 is" in failing.stderr
    assert {name for name in before if name != removed} == set(records(folder))
    weights.write_bytes(content)
    mended = run(folder)
    assert mended.returncode == 0
    after = records(folder)
    assert set(after) == set(before)
    assert all(after[name] == before[name] for name in before if name != removed)
