"""Weights of teachers kept among the results: half as large, as good, and what students learn from where the
others are gone.
"""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pursuhint_lib import records, training
from pursuhint_lib.cli import main
from pursuhint_lib.files import sha256
from pursuhint_lib.models import save_weights
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.experiments.exports import Chosen, export_network
from pursuhint_lib.study.grid.cells import cell_settings
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish import keep
from pursuhint_lib.study.publish.verify import sums_file, write_sums
from pursuhint_lib.teachers import read_entry


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Work and results of the smoke profile with its teacher trained."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("work", "results", "data"):
            patch.setenv(f"PURSUHINT_{name.upper()}", str(folder / name))
        profile = load_profile("smoke")
        training.train_teacher(profile.teacher_settings(profile.pairs[0].teacher))
    return folder


@pytest.fixture
def profile(trained, tmp_path):
    for name in ("work", "results"):
        shutil.copytree(trained / name, tmp_path / name)
    return load_profile("smoke")


def teacher_of(profile):
    settings = profile.teacher_settings(profile.pairs[0].teacher)
    return (
        settings,
        StudyPaths("smoke").weights(records.record_name(settings)),
        StudyPaths("smoke").kept_weights(records.record_name(settings)),
    )


def test_kept_weights_are_half_as_large_and_as_good(profile, capsys):
    settings, own, kept = teacher_of(profile)
    assert main(["keep", "smoke"]) == 0
    before, after = load_file(own), load_file(kept)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == (torch.bfloat16 if tensor.dim() > 1 else tensor.dtype)
        torch.testing.assert_close(after[name].to(tensor.dtype), tensor, rtol=2**-8, atol=0)
    assert kept.stat().st_size < 0.6 * own.stat().st_size
    entry, record = read_entry(kept), records.load("smoke", settings)
    assert entry.sha256 == sha256(kept)
    assert entry.accuracy == pytest.approx(record.metrics["accuracy"], abs=0.1)
    assert f"on record {record.metrics['accuracy']:.2f} %" in capsys.readouterr().out


def test_profiles_share_a_teacher_that_one_of_them_keeps(profile):
    settings, own, kept = teacher_of(profile)
    main(["keep", "smoke"])
    own.unlink()
    other = replace(settings, profile="another")
    assert training.teacher_weights(other) is None, "it has no record of it"
    records.save("another", records.load("smoke", settings))
    assert training.teacher_weights(other) == kept
    # Its own come first.
    mine = StudyPaths("another").kept_weights(own.stem)
    mine.parent.mkdir()
    shutil.copy(kept, mine)
    assert training.teacher_weights(other) == mine


def test_students_learn_from_the_kept_teacher_where_there_is_no_other(profile):
    settings, own, kept = teacher_of(profile)
    main(["keep", "smoke"])
    own.unlink()
    written = (StudyPaths("smoke").records / f"{records.record_name(settings)}.json").read_bytes()
    stored = load_file(kept)
    assert all(
        torch.equal(tensor, stored[name].to(tensor.dtype))
        for name, tensor in training.load_teacher(settings).state_dict().items()
    )
    (student,) = training.distill(cell_settings(profile, profile.pairs[0], "kd", 0, {}))
    assert student.provenance["teacher_checksum"] == sha256(kept)[:16]
    exported, _ = export_network(
        profile,
        Chosen({"role": "teacher", "arm": "", "network": settings.network}, settings, ""),
        own.parent / "export",
    )
    assert exported.accuracy == pytest.approx(read_entry(kept).accuracy, abs=1e-3)
    assert not own.exists(), "nothing was trained again"
    assert (StudyPaths("smoke").records / f"{records.record_name(settings)}.json").read_bytes() == written


def test_kept_weights_that_were_changed_are_refused(profile):
    settings, own, kept = teacher_of(profile)
    main(["keep", "smoke"])
    own.unlink()
    save_weights(training.seeded_model(settings.network, settings.data, 7), kept)
    with pytest.raises(SettingsError, match="has changed: sha256 is"):
        training.load_teacher(settings)


def test_checksums_that_are_there_get_the_kept_weights_too(profile):
    results = StudyPaths("smoke").results
    main(["keep", "smoke"])
    assert not sums_file(results).exists(), "a study that is not over has none"
    write_sums(results)
    before = sums_file(results).read_text()
    _, _, kept = teacher_of(profile)
    assert f"teachers/{kept.name}" in before
    kept.unlink()
    write_sums(results)
    main(["keep", "smoke"])
    assert sums_file(results).read_text() == before


def test_a_teacher_that_rounding_makes_another_is_kept_as_it_was_trained(profile, monkeypatch):
    monkeypatch.setattr(keep, "evaluate", lambda *_: {"accuracy": 3.0})
    assert main(["keep", "smoke"]) == 0
    settings, own, kept = teacher_of(profile)
    before, after = load_file(own), load_file(kept)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert read_entry(kept).accuracy == records.load("smoke", settings).metrics["accuracy"]


def test_a_teacher_that_is_not_trained_is_named(capsys):
    assert main(["keep", "smoke"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: teacher resnet14 of smoke is not trained here; run ./run_all.sh smoke first"
    )
    assert said.count("\n") == 1
