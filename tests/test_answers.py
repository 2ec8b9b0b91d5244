"""Which test images were answered rightly: in the records, in the order of the images, whoever evaluates; and
two students compared by it.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pursuhint_lib import records, training
from pursuhint_lib.data import load_splits
from pursuhint_lib.paths import ROOT, StudyPaths
from pursuhint_lib.records import answered, packed
from pursuhint_lib.settings import (
    Arm,
    Data,
    DistillSettings,
    Schedule,
    TeacherSettings,
)
from pursuhint_lib.statistics import mcnemar

DATA = Data("digits", train_images=100, test_images=601)
TEACHER = TeacherSettings("resnet14", DATA, Schedule(2, 50, 0.05), profile="mine")
CELL = DistillSettings(
    teacher=TEACHER,
    student="resnet8x0.25",
    method="at",
    arms=(Arm("none"), Arm("ends", ("layer1.1", "layer3.1"))),
    student_points=("layer1", "layer3"),
    ce_weight=1.0,
    kd_weight=1.0,
    hint_weight=10.0,
    temperature=4.0,
    data=DATA,
    schedule=Schedule(2, 50, 0.05),
    seed=3,
    profile="mine",
)
# The first part of the study, from before records said which images were answered rightly.
OLDER = min((ROOT / "results" / "cifar100-lite" / "records").glob("*.json"))


def by_hand(record, network: str, data: Data = DATA) -> np.ndarray:
    """Right answers of the record's weights, one image at a time."""
    model = training.seeded_model(network, data, 0).eval()
    model.load_state_dict(load_file(StudyPaths("mine").weights(record.name)))
    test = load_splits(data, torch.device("cpu")).test
    with torch.no_grad():
        return np.array(
            [int(model(images).argmax()) == int(label) for images, label in test.ordered_batches(1)]
        )


def test_records_of_teachers_and_students_say_which_images_were_answered_rightly():
    found = [training.train_teacher(TEACHER), *training.distill(CELL)]
    for record, network in zip(found, ("resnet14", "resnet8x0.25", "resnet8x0.25"), strict=True):
        right = answered(records.read(StudyPaths("mine").records / f"{record.name}.json"))
        assert (right.shape, right.dtype) == ((601,), bool)
        assert right.tolist() == by_hand(record, network).tolist()
        assert round(100 * right.mean(), 3) == record.metrics["accuracy"]
    assert len({record.answers["right"] for record in found}) == 3
    # A training that goes on for its weights alone leaves the record as it is.
    assert training.train_teacher(TEACHER, force=True).answers == found[0].answers


def test_a_given_checkpoint_says_it_too(tmp_path):
    trained = training.train_teacher(TEACHER)
    given = replace(TEACHER, checkpoint=str(StudyPaths("mine").weights(trained.name)))
    assert training.train_teacher(given).answers == trained.answers


def test_failed_runs_and_older_records_say_nothing():
    failed = training.distill(replace(CELL, method="fitnet", hint_weight=1e30))[1]
    assert failed.status == "failed"
    assert answered(failed) is None
    assert answered(records.read(OLDER)) is None


@pytest.mark.parametrize("count", [1, 7, 8, 9, 10_000])
def test_answers_come_back_from_json_as_they_were(count):
    right = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
    text = json.dumps(packed(right))
    assert len(text) < 1_750
    record = replace(records.read(OLDER), answers=json.loads(text))
    assert answered(record).tolist() == right.tolist()


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 6), (3, 9), (9, 3), (5, 5), (40, 17)])
def test_mcnemar_is_the_sum_of_the_binomial_terms_that_are_no_likelier(b, c):
    n = 200
    first = np.arange(n) < b
    second = (np.arange(n) >= b) & (np.arange(n) < b + c)
    both = np.arange(n) >= n - 30
    found = mcnemar(first | both, second | both)
    terms = [math.comb(b + c, k) for k in range(b + c + 1)]
    assert (found.only_first, found.only_second) == (b, c)
    assert found.p == pytest.approx(sum(term for term in terms if term <= terms[b]) / 2 ** (b + c))
    assert found.difference == pytest.approx(100 * ((first | both).mean() - (second | both).mean()))


def test_the_interval_of_a_difference_holds_the_true_one_in_95_of_100_samples():
    """Coverage over 4000 samples of 300 images; 95 % is known from so many to ± 0.7 points at two standard
    errors.
    """
    generator, held = np.random.default_rng(0), 0
    for _ in range(4000):
        # Right together or apart: both, only the first, only the second, neither; the true difference is 4
        # points.
        kind = generator.choice(4, size=300, p=[0.4, 0.12, 0.08, 0.4])
        low, high = mcnemar((kind == 0) | (kind == 1), (kind == 0) | (kind == 2)).interval
        held += low <= 4 <= high
    assert held / 4000 == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("others", [np.ones(4, bool), np.ones((5, 1), bool)])
def test_answers_to_other_images_are_not_compared(others):
    with pytest.raises(ValueError, match=r"answers have shapes \(5,\) and .*; give those to the same images"):
        mcnemar(np.ones(5, bool), others)
