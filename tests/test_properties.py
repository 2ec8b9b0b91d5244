"""What must hold for any input: settings and their hash, similarity, clustering, statistics, and the readers
of files that people edit.
"""

import copy
import dataclasses
import json
import math
import random
import tempfile
from dataclasses import asdict
from functools import cache, reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from hypothesis.configuration import set_hypothesis_home_dir
from paired import paired_effect

from pursuhint_lib import records, statistics
from pursuhint_lib.clustering import choose_hint_points, random_points, segment_middles
from pursuhint_lib.paths import CONFIG
from pursuhint_lib.settings import (
    Data,
    Profile,
    Schedule,
    SettingsError,
    StudentSettings,
    TeacherSettings,
    build,
    read_profile,
    resolved,
    settings_hash,
)
from pursuhint_lib.statistics import equivalence_p, holm

# The same examples every time; the folder of a test is used by all of them.
few = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# Tables of characters that Hypothesis makes for itself; they do not belong into the checkout.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")


# Settings
# -----------------------------------------------------------------------------------------------------------

NAMES = some.text("abcdefghijklmnopqrstuvwxyz0123456789._/", min_size=1, max_size=12)
POSITIVE = some.floats(1e-6, 1e6) | some.integers(1, 1000).map(float)
SEEDS = some.integers(0, 2**32 - 1)
WHOLE = some.none() | some.integers(1, 10**6)
DATA = some.builds(
    Data,
    dataset=NAMES,
    train_images=WHOLE,
    subset_seed=SEEDS,
    test_images=WHOLE,
    root=some.none() | NAMES,
    image_size=WHOLE,
    classes=WHOLE,
)


@some.composite
def schedules(draw) -> Schedule:
    epochs = draw(some.integers(1, 300))
    milestones = draw(some.sets(some.integers(1, epochs - 1), max_size=3)) if epochs > 1 else ()
    return Schedule(
        epochs,
        draw(some.integers(1, 512)),
        draw(POSITIVE),
        tuple(sorted(milestones)),
        draw(POSITIVE),
        draw(some.floats(0, 0.99)),
        draw(some.floats(0, 1)),
        draw(some.integers(1, 50)),
        draw(some.booleans()),
    )


TEACHERS = some.builds(
    TeacherSettings,
    network=NAMES,
    data=DATA,
    schedule=schedules(),
    seed=SEEDS,
    precision=some.sampled_from(["fp32", "bf16"]),
    checkpoint=some.none() | NAMES,
    profile=some.just(""),
)
POINTS = some.lists(NAMES, max_size=4).map(tuple)
STUDENTS = some.builds(
    StudentSettings,
    teacher=TEACHERS,
    student=NAMES,
    method=NAMES,
    teacher_points=POINTS,
    student_points=POINTS,
    ce_weight=POSITIVE,
    kd_weight=POSITIVE,
    hint_weight=POSITIVE,
    temperature=POSITIVE,
    data=DATA,
    schedule=schedules(),
    seed=SEEDS,
    part_weights=some.lists(POSITIVE, max_size=3).map(tuple),
)


@few
@given(STUDENTS)
def test_settings_come_back_from_json_and_yaml(given_settings):
    plain = resolved(given_settings)
    for text, read in ((json.dumps(plain), json.loads), (yaml.safe_dump(plain), yaml.safe_load)):
        again = build(StudentSettings, read(text), "here")
        assert again == given_settings
        assert settings_hash(again) == settings_hash(given_settings)


def shuffled(value, draws: random.Random):
    """The same plain values with keys in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], draws) for key in draws.sample(list(value), len(value))}
    return [shuffled(entry, draws) for entry in value] if isinstance(value, list) else value


@few
@given(STUDENTS, some.randoms(use_true_random=False))
def test_the_hash_knows_no_order_of_keys(given_settings, draws):
    assert settings_hash(
        build(StudentSettings, shuffled(resolved(given_settings), draws), "here")
    ) == settings_hash(given_settings)


@few
@given(some.integers(1, 10**6), some.integers(1, 10**6))
def test_the_hash_knows_no_spelling_of_numbers(rate, decay):
    spelt = [
        {"epochs": 5, "batch_size": 4, "learning_rate": kind(rate), "decay": kind(decay)}
        for kind in (int, float)
    ]
    texts = [
        *map(yaml.safe_dump, spelt),
        *map(json.dumps, spelt),
        f"epochs: 0x5\nbatch_size: 4\nlearning_rate: {rate}.00\ndecay: +{decay}\n",
    ]
    assert len({settings_hash(build(Schedule, yaml.safe_load(text), "here")) for text in texts}) == 1


def changes(plain, path=()):
    """Paths of all leaves."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from changes(value, (*path, key))
    else:
        yield path


def another(value):
    """A value of the same kind that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value / 2 if isinstance(value, float) else value + 1
    return [*value, value[-1] if value else "x"] if isinstance(value, list) else f"{value or ''}x"


@few
@given(STUDENTS, some.data())
def test_every_change_changes_the_hash(given_settings, data):
    plain = resolved(given_settings)
    *path, last = data.draw(some.sampled_from(list(changes(plain))))
    other = copy.deepcopy(plain)
    inner = reduce(getitem, path, other)
    inner[last] = another(inner[last])
    # Not built, for the settings would refuse some of the changes.
    assert plain_hash(other) != plain_hash(plain), (path, last)


def plain_hash(plain: dict) -> str:
    """Hash of plain values as ``settings_hash`` takes it: of their fields, all of which are given."""
    values = {name: plain_hash(value) if isinstance(value, dict) else value for name, value in plain.items()}
    return settings_hash(dataclasses.make_dataclass("Plain", [(name, object) for name in plain])(**values))


# Clustering
# ---------------------------------------------------------------------------------------------------------


@some.composite
def similarities(draw) -> np.ndarray:
    """Similarity matrices without exact ties."""
    layers, seed = draw(some.integers(3, 9)), draw(some.integers(0, 2**16))
    features = np.random.default_rng(seed).normal(size=(layers, 6)).cumsum(axis=0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    matrix = (unit @ unit.T + 1) / 2
    np.fill_diagonal(matrix, 1)
    return (matrix + matrix.T) / 2


@few
@given(similarities(), some.data())
def test_medoids_do_not_depend_on_how_layers_are_numbered(similarity, data):
    layers = len(similarity)
    k, order = data.draw(some.integers(1, layers)), data.draw(some.permutations(range(layers)))
    for algorithm in ("kmedoids", "agglomerative"):
        points = choose_hint_points(similarity, k, algorithm)
        again = choose_hint_points(similarity[np.ix_(order, order)], k, algorithm)
        assert again.objective == pytest.approx(points.objective, abs=1e-9)
        # The same layers belong together.
        pairs = zip((points.labels[layer] for layer in order), again.labels, strict=True)
        assert len(set(pairs)) == k


@few
@given(some.integers(1, 40), some.data())
def test_points_that_look_at_nothing_are_valid_and_kept(layers, data):
    k = data.draw(some.integers(1, layers))
    middles = segment_middles(layers, k)
    assert list(middles) == sorted(set(middles))
    assert middles[0] >= 0
    assert middles[-1] < layers
    draws = data.draw(some.integers(1, min(6, math.comb(layers, k))))
    found = random_points(layers, k, draws)
    assert len(set(found)) == draws
    assert all(len(set(points)) == k and set(points) <= set(range(layers)) for points in found)
    assert found[:1] == random_points(layers, k, 1)


# Statistics
# ---------------------------------------------------------------------------------------------------------

DIFFERENCES = some.lists(some.floats(-100, 100).map(lambda value: round(value, 3)), min_size=2, max_size=12)
P_VALUES = some.lists(some.floats(0, 1), min_size=1, max_size=12)


@few
@given(DIFFERENCES)
def test_an_interval_holds_the_mean_and_turns_with_the_sign(values):
    effect, turned = paired_effect(values), paired_effect([-value for value in values])
    assert effect.low <= effect.mean <= effect.high
    assert list(turned.row().values()) == pytest.approx(
        [-effect.mean, -effect.high, -effect.low, effect.n, effect.p]
    )
    # The test and the interval say the same.
    assert (effect.p < statistics.LEVEL) == (not effect.low <= 0 <= effect.high) or effect.p == pytest.approx(
        statistics.LEVEL
    )


@few
@given(P_VALUES)
def test_holm_keeps_the_order_and_never_makes_smaller(values):
    adjusted = holm(values)
    assert ((adjusted >= np.array(values)) & (adjusted <= 1)).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    assert adjusted.min() == pytest.approx(min(1.0, len(values) * min(values)))
    assert (adjusted <= np.minimum(1, len(values) * np.array(values)) + 1e-12).all()
    assert holm(values[::-1]) == pytest.approx(adjusted[::-1])


@few
@given(DIFFERENCES, some.floats(1e-3, 50), some.floats(1e-3, 50))
def test_equivalence_is_easier_within_a_wider_margin_and_turns_with_the_sign(values, margin, more):
    narrow, wide = (
        equivalence_p(paired_effect(values), margin),
        equivalence_p(paired_effect(values), margin + more),
    )
    assert 0 <= wide <= narrow + 1e-12 <= 1 + 1e-9
    assert equivalence_p(paired_effect([-value for value in values]), margin) == pytest.approx(narrow)
    # A mean outside the margin is never surely inside.
    assert narrow >= 0.5 - 1e-9 or abs(np.mean(values)) < margin


# Readers
# ------------------------------------------------------------------------------------------------------------

SMOKE = (CONFIG / "smoke.yaml").read_bytes()
ODD = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8) | some.dates(),
    lambda inner: (
        some.lists(inner, max_size=3)
        | some.dictionaries(some.text(max_size=5) | some.integers() | some.none(), inner, max_size=3)
    ),
    max_leaves=6,
)


def mutated(content: bytes):
    """Copies of a file with a part taken out, doubled or replaced by any bytes."""
    cut = some.tuples(
        some.integers(0, len(content)), some.integers(0, 40), some.binary(max_size=6), some.booleans()
    )

    def apply(change: tuple[int, int, bytes, bool]) -> bytes:
        start, length, put, doubled = change
        return content[:start] + put + content[start if doubled else start + length :]

    return cut.map(apply)


def only_settings_errors(read, path, content: bytes) -> None:
    path.write_bytes(content)
    said = path.name
    try:
        read(path)
    except SettingsError as error:
        said = str(error)
    assert path.name in said
    assert "\n" not in said


@settings(few, max_examples=150)
@given(some.binary(max_size=60) | mutated(SMOKE))
def test_any_bytes_are_a_profile_or_refused_by_name(tmp_path, content):
    only_settings_errors(read_profile, tmp_path / "mine.yaml", content)


@settings(few, max_examples=100)
@given(some.sampled_from([f.name for f in dataclasses.fields(Profile)]), ODD)
def test_any_value_of_a_setting_is_taken_or_refused_by_name(tmp_path, name, value):
    only_settings_errors(
        read_profile, tmp_path / "mine.yaml", yaml.safe_dump({**yaml.safe_load(SMOKE), name: value}).encode()
    )


@cache
def record_bytes() -> bytes:
    teacher = TeacherSettings("resnet14", Data("digits"), Schedule(2, 50, 0.05))
    name = records.record_name(teacher)
    record = records.Record(
        name,
        "teacher",
        resolved(teacher),
        "ok",
        {"accuracy": 50.0, "parameters": 7},
        {"accuracy": [None, 50.0]},
        {"seconds": 1.5},
    )
    return json.dumps(asdict(record), indent=1).encode()


@settings(few, max_examples=150)
@given(some.binary(max_size=60) | mutated(record_bytes()))
def test_any_bytes_are_a_record_or_refused_by_name(tmp_path, content):
    only_settings_errors(records.read, tmp_path / "mine.json", content)


@settings(few, max_examples=100)
@given(some.sampled_from([f.name for f in dataclasses.fields(records.Record)]), ODD)
def test_any_value_in_a_record_is_taken_or_refused_by_name(tmp_path, name, value):
    content = json.dumps({**json.loads(record_bytes()), name: value}, default=str).encode()
    only_settings_errors(records.read, tmp_path / "mine.json", content)


def test_a_record_nested_without_end_is_refused_by_name(tmp_path):
    only_settings_errors(records.read, tmp_path / "mine.json", b"[" * 100_000)
