"""The command that exports one student."""

import pytest
from small_exports import small_study

from pursuhint_lib import records
from pursuhint_lib.cli import main
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.experiments import exports as compression
from pursuhint_lib.study.experiments.exports import (
    chosen_networks,
)
from pursuhint_lib.study.grid.cells import results_frame
from pursuhint_lib.study.publish import export as command
from pursuhint_lib.study.publish.export import choose_student


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    """Where all tests below keep the one study."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def profile(study_folder, monkeypatch):
    return small_study(study_folder, monkeypatch)


def test_the_command_exports_the_best_student_where_it_is_told(profile, tmp_path, capsys):
    assert main(["export", "smoke", "--to", str(tmp_path / "out")]) == 0
    chosen = chosen_networks(profile, results_frame(profile))[2]
    text = capsys.readouterr().out
    assert f"method {chosen.row['method']}, arm {chosen.row['arm']}, seed {chosen.run.seed}" in text
    assert f"Written to {tmp_path / 'out'};" in text
    for told in ("safetensors", "torch.export", "ONNX Runtime", "5,142 parameters"):
        assert told in text
    assert chosen.name in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "method", "arm"),
    [
        (("at", None, None), "at", None),
        ((None, "random-1", None), "at", "random-1"),
        (("at", "alone", None), "ce", "alone"),
        (("ce", None, None), "ce", "alone"),
        (("simkd", None, 2), "simkd", "none"),
        (("at", "none", 1), "at", "none"),
    ],
)
def test_the_command_takes_the_best_of_what_is_named(profile, options, method, arm):
    chosen = choose_student(profile, None, *options)
    assert chosen.row["method"] == method
    assert arm in (None, chosen.row["arm"])
    assert records.load("smoke", chosen.run) is not None
    assert options[2] in (None, chosen.run.seed)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["smok"], ("unknown profile 'smok'", "'smoke'")),
        (["smoke", "--pair", "a-b"], ("unknown pair 'a-b'", "resnet14-resnet8x0.25")),
        (["smoke", "--method", "fitnet"], ("unknown method 'fitnet'", "ce, kd, at, simkd")),
        (["smoke", "--arm", "last"], ("unknown arm 'last'", "alone, none, stage-ends, random-1")),
        (["smoke", "--method", "kd", "--arm", "random-1"], ("unknown arm 'random-1'", "valid: none")),
        (["smoke", "--seed", "3"], ("unknown seed '3'", "0, 1, 2")),
        (["cifar100"], ("cifar100 has no trained student", "./run_all.sh cifar100")),
    ],
)
def test_what_cannot_be_exported_ends_with_2_and_one_line(profile, arguments, told, capsys):
    assert main(["export", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for text in told:
        assert text in captured.err


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_done(
    profile, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(compression, "load_splits", lambda *_: pytest.fail("began"))
    file = tmp_path / "file"
    file.write_text("")
    assert main(["export", "smoke", "--to", str(file)]) == 2
    assert str(file) in capsys.readouterr().err


def test_students_that_all_failed_are_told_of(profile, monkeypatch):
    frame = results_frame(profile)
    monkeypatch.setattr(
        command, "results_frame", lambda _: frame.assign(accuracy=float("nan"), status="failed")
    )
    with pytest.raises(
        SettingsError, match="every student of resnet14-resnet8x0.25 that is asked for has failed"
    ):
        choose_student(profile, None, None, None, None)
