"""Before anything is trained: every method of a profile is tried with every pair, and what cannot work is
named.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pursuhint_lib import training
from pursuhint_lib.cli import main
from pursuhint_lib.distillers import DISTILLERS, Distiller
from pursuhint_lib.distillers.maps import PerPoint
from pursuhint_lib.models import MODELS, build_model, parameter_count
from pursuhint_lib.settings import Data, Pair, SettingsError
from pursuhint_lib.study.engine import run
from pursuhint_lib.study.engine.check import NOTE, OK, WRONG
from pursuhint_lib.study.engine.validate import points_table, validate
from pursuhint_lib.study.grid.profiles import checked, load_profile


def profile(*methods, **changes):
    return checked(replace(load_profile("smoke"), methods=methods, example_pair=None, **changes))


def with_method(monkeypatch, loss):
    monkeypatch.setitem(
        DISTILLERS, "mine", Distiller("mine", "a test", "anything", partial(PerPoint, loss), 1.0)
    )


def test_every_method_of_the_registry_works_with_the_smoke_pair():
    (finding,) = validate(profile(*DISTILLERS))
    assert (finding.what, finding.state) == ("pair resnet14 → resnet8x0.25", OK)
    assert finding.detail.startswith(
        f"{len(DISTILLERS)} of {len(DISTILLERS)} methods, with each of 3 shapes of sub-blocks"
    )


def test_nothing_is_trained_or_written_and_chance_stays_as_it_was(tmp_path):
    state = torch.get_rng_state()
    validate(profile("fitnet", "crd", "simkd"))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda s, t: (s / 0).mean(), "the loss is not finite"),
        (lambda s, t: (s * 0).sqrt().sum(), "the gradient is not finite"),
        (lambda s, t: (s - t).mean(), "must match the size"),
    ],
    ids=["loss", "gradient", "shapes"],
)
def test_a_method_that_fails_is_named_with_the_reason_and_the_others_are_still_tried(
    monkeypatch, loss, reason
):
    with_method(monkeypatch, loss)
    wrong, summary = validate(profile("mine", "at"))
    assert (wrong.what, wrong.state) == ("pair resnet14 → resnet8x0.25, mine", WRONG)
    assert reason in wrong.detail
    assert "\n" not in wrong.detail
    assert summary.detail.startswith("1 of 2 methods")


def test_a_gradient_that_reaches_the_teacher_is_found(monkeypatch):
    leak = nn.Parameter(torch.ones(()))
    with_method(monkeypatch, lambda s, t: s.mean() * leak)
    frozen = training.objective.FrozenTeacher.__init__

    def leaking(self, model, points):
        frozen(self, model, points)
        self.model.register_parameter("leak", leak)

    monkeypatch.setattr(training.objective.FrozenTeacher, "__init__", leaking)
    wrong, _ = validate(profile("mine"))
    assert wrong.detail == "the gradient of the loss reaches the teacher"


def test_shapes_from_which_nothing_is_learned_are_noted():
    # On 8×8 digits a VGG ends in maps of one pixel, which are 1 after AT's normalising.
    pair = Pair("vgg8x0.125", "resnet8x0.25")
    note, summary = validate(profile("at", "fitnet", arms=("none",), pairs=(pair,)))
    assert (note.what, note.state) == ("pair vgg8x0.125 → resnet8x0.25, at", NOTE)
    assert "64×1×1" in note.detail
    assert summary.state == OK


def test_a_teacher_without_a_plain_classifier_is_refused_for_simkd_before_any_training(monkeypatch, capsys):
    class Crooked(nn.Sequential):
        def __init__(self, classes, channels):
            super().__init__(
                nn.Conv2d(channels, 4, 3),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3),
                nn.ReLU(),
                nn.AdaptiveMaxPool2d(1),
                nn.Flatten(),
                nn.Linear(4, classes),
            )

    monkeypatch.setitem(MODELS, "crooked", Crooked)
    bad = profile("simkd", "fitnet", arms=("none", "stage-ends"), pairs=(Pair("crooked", "crooked"),))
    wrong, _ = validate(bad)
    assert wrong.state == WRONG
    assert (
        "classifier of crooked, which must then be linear in the mean of the last sub-block (5), and is not"
        in wrong.detail
    )
    monkeypatch.setattr(run, "load_profile", lambda _: bad)
    monkeypatch.setattr(training.runs, "fit", lambda *a, **k: pytest.fail("something was trained"))
    assert main(["run", "smoke"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: pair crooked → crooked, simkd: simkd gives a student the classifier"
    )
    assert main(["run", "smoke", "--check"]) == 2
    assert "✗ pair crooked → crooked, simkd" in capsys.readouterr().out


def test_too_few_hint_points_for_a_method_are_refused():
    with pytest.raises(
        SettingsError, match="method fsp needs 2 hint layers or more, but k is 1; leave it out"
    ):
        profile("fsp", arms=("none",), pairs=(Pair("resnet14", "resnet8x0.25", ("layer3.0",), 1),))


@pytest.mark.parametrize("network", ["resnet20", "vgg8x0.125", "ShuffleV1"])
def test_the_table_of_points_has_every_sub_block_with_shape_and_parameters(network):
    data = Data("cifar100")
    table = points_table(network, data)
    ends = [[int(number) for number in numbers.split("–")] for numbers in table["sub-blocks"]]
    counts = [1 + numbers[-1] - numbers[0] for numbers in ends]
    model = build_model(network, 100)
    classifier = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear))
    inside = sum(count * size for count, size in zip(counts, table["parameters"], strict=True))
    assert inside == parameter_count(model) - parameter_count(classifier)
    assert table["stage"].iloc[-1] == "ends"


def test_the_table_of_points_reads_well():
    text = points_table("resnet20", Data("cifar100")).to_string(index=False)
    assert [line.split() for line in text.splitlines()[1:4]] == [
        ["1", "layer1.0", "16×32×32", "5136"],
        ["2–3", "layer1.1", "…", "layer1.2", "16×32×32", "4672", "ends"],
        ["4", "layer2.0", "32×16×16", "14528"],
    ]
