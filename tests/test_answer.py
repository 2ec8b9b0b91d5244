"""Every number of the answers, recomputed from the committed records with nothing of this library."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import optimize, special, stats

from pursuhint_lib.paths import CONFIG, ROOT

RESULTS = ROOT / "results" / "cifar100-lite"
PROFILE = yaml.safe_load((CONFIG / "cifar100-lite.yaml").read_text())
HINTED = ("fitnet", "at", "vid", "sp", "crd-batch")
PAPER = ("pursuhint-r2", "pursuhint-cka-linear", "pursuhint-cka-rbf")
# The literature's weights, which the grid has.
USUAL = {"fitnet": 100, "at": 1000, "vid": 1, "sp": 3000, "crd-batch": 0.8}


def stored(path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def runs() -> dict[tuple, float]:
    """(teacher, student, method, weight, layers, seed) → accuracy."""
    found = {}
    for file in (RESULTS / "records").glob("*_from_*.json"):
        record = stored(file)
        run, layers = record["settings"], " ".join(record["settings"]["teacher_points"])
        key = (run["teacher"]["network"], run["student"], run["method"], round(run["hint_weight"], 9), layers)
        found[(*key, run["seed"])] = record["metrics"]["accuracy"]
    return found


def layers_of(teacher: str) -> dict[str, str]:
    """Arm → the teacher's layers, the mixed sets of notebook 10 among them."""
    hints = stored(RESULTS / "hints" / f"{teacher}-k3.json")
    found = {arm: entry["names"] for arm, entry in hints.items() if isinstance(entry, dict)}
    ends, paper = found["stage-ends"], found["pursuhint-cka-linear"]
    found |= {"none": [], "deepened-cka-linear": [*paper[:2], ends[2]]}
    found["shallowed-cka-linear"] = [*ends[:2], paper[2]]
    return {arm: " ".join(names) for arm, names in found.items()}


def table(runs, teacher, student, method, weight, arms, seeds) -> pd.DataFrame:
    """Accuracy by seed and set of layers; sets that are the same are one column."""
    layers = layers_of(teacher)
    columns = {}
    for chosen in dict.fromkeys(layers[arm] for arm in arms):
        how = (method, weight) if chosen else ("kd", 0)
        columns[chosen] = [runs[teacher, student, *how, chosen, seed] for seed in range(seeds)]
    return pd.DataFrame(columns)


def moderated(tables: list[pd.DataFrame]) -> list[tuple[float, float]]:
    """Variance of a run in each cell and its degrees of freedom, by empirical Bayes: d₀ by a root."""
    variances, freedoms = [], []
    for cell in tables:
        values = cell.to_numpy()
        rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
        freedoms.append((values.shape[0] - 1) * (values.shape[1] - 1))
        variances.append((rest**2).sum() / freedoms[-1])
    s2, d = np.array(variances), np.array(freedoms, float)
    logs = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
    excess = logs.var(ddof=1) - special.polygamma(1, d / 2).mean()
    if excess <= 0:
        return [((s2 * d).sum() / d.sum(), d.sum())] * len(tables)
    prior = optimize.brentq(lambda x: special.polygamma(1, x / 2) - excess, 1e-6, 1e8, xtol=1e-13)
    centre = np.exp(logs.mean() + special.digamma(prior / 2) - np.log(prior / 2))
    pooled = (prior * centre + d * s2) / (prior + d)
    return list(zip(pooled, np.minimum(prior + d, d.sum()), strict=True))


def interval(mean: float, error: float, freedom: float) -> list[float]:
    return [mean, *stats.t.interval(0.95, freedom, mean, error)]


def grid(runs, arms) -> tuple[list[tuple], list[pd.DataFrame]]:
    """Cells (teacher, student, method) of the grid, and their tables."""
    cells, tables = [], []
    for pair in PROFILE["pairs"]:
        for method in pair.get("methods", HINTED):
            seeds = min(pair.get("seeds", 5), PROFILE["fewer_seeds"].get(method, 5))
            cells.append((pair["teacher"], pair["student"], method))
            tables.append(table(runs, *cells[-1], USUAL[method], arms, seeds))
    return cells, tables


def differences(runs, reference: str) -> dict[tuple, tuple[float, float, float]]:
    """Cell → mean, error and freedom of PURSUhInT's layers minus the reference's."""
    cells, tables = grid(runs, PROFILE["arms"])
    found = {}
    for cell, values, (variance, freedom) in zip(cells, tables, moderated(tables), strict=True):
        layers = layers_of(cell[0])
        theirs = layers[reference]
        ours = [chosen for chosen in dict.fromkeys(layers[arm] for arm in PAPER) if chosen != theirs]
        if ours:
            mean = (values[ours].mean(axis=1) - values[theirs]).mean()
            error = np.sqrt(variance * (1 / len(ours) + 1) / len(values))
            found[cell] = (mean, error, freedom)
    return found


def from_random(runs) -> dict[tuple, tuple[float, float, float]]:
    """Cell → mean, error and freedom of PURSUhInT's layers minus any random set, of which five were drawn."""
    cells, tables = grid(runs, PROFILE["arms"])
    found = {}
    for cell, values, (variance, freedom) in zip(cells, tables, moderated(tables), strict=True):
        layers = layers_of(cell[0])
        ours = values[list(dict.fromkeys(layers[arm] for arm in PAPER))]
        sets = values[[layers[f"random-{number}"] for number in range(1, 6)]].mean()
        parts = np.array([variance / len(values) / ours.shape[1], sets.var(ddof=1) / 5])
        freedoms = np.array([freedom, 4])
        error = np.sqrt(parts.sum())
        found[cell] = (
            ours.mean().mean() - sets.mean(),
            error,
            parts.sum() ** 2 / (parts**2 / freedoms).sum(),
        )
    return found


def paper_layers(similarity: np.ndarray) -> str:
    """The paper's k-means for three hint layers, as it is told: numbers from 1."""
    last = len(similarity) - 1
    centres = [0, last // 2, last]
    for _ in range(80):
        nearest = np.array(centres)[similarity[:, centres].argmax(axis=1)]
        for place, centre in enumerate(list(centres)):
            members = np.flatnonzero(nearest == centre)
            centres[place] = int(members[np.abs(members - int(members.mean())).argmin()])
    return ", ".join(str(centre + 1) for centre in centres)


def weighted(found: dict[tuple, tuple], place: slice) -> list[float]:
    """A mean in which all cells that have the same key count as one."""
    keys = [cell[place] for cell in found]
    shares = np.array([1 / keys.count(key) for key in keys])
    shares /= shares.sum()
    means, errors, freedoms = np.array([*found.values()]).T
    parts = (shares * errors) ** 2
    return interval(shares @ means, np.sqrt(parts.sum()), parts.sum() ** 2 / np.sum(parts**2 / freedoms))


def known(found: dict[tuple, tuple]) -> list[int]:
    """How many differences Holm's step-down test finds, and of how many."""
    p = sorted(2 * stats.t.sf(abs(mean / error), freedom) for mean, error, freedom in found.values())
    passed = [value * (len(p) - rank) < 0.05 for rank, value in enumerate(p)]
    return [passed.index(False) if False in passed else len(p), len(p)]


@pytest.fixture(scope="module")
def expected(runs) -> dict[str, list]:
    """Name of a number, as the note has it → its values."""
    ends, middles = (differences(runs, reference) for reference in ("stage-ends", "segment-middles"))
    numbers = {"05_results:segment-middles-known": known(middles)}
    numbers["05_results:random-known"] = known(from_random(runs))
    # A residual network of depth 6n + 2 has 3n blocks of two convolutions.
    numbers["01_teacher_and_layers-resnet56:layers"] = [(56 - 2) // 2]
    matrices = stored(RESULTS / "hints" / "resnet56-similarity.json")["similarity"]
    numbers["02_hint_points-resnet56-3:points-cka-linear"] = [paper_layers(np.array(matrices["cka-linear"]))]
    for (teacher, student, method), found in ends.items():
        numbers[f"05_results:{teacher}-{student}-{method}-stage-ends"] = interval(*found)
    numbers["05_results:stage-ends-methods-equally"] = weighted(ends, slice(2, 3))
    numbers["05_results:stage-ends-pairs-equally"] = weighted(ends, slice(0, 2))
    # FitNet at two weights, each with all arms of its sweep and without hints.
    (sweep,) = [sweep for sweep in PROFILE["sweeps"] if sweep["method"] == "fitnet"]
    weights = (1, 100)
    tables = [
        table(runs, "resnet56", "resnet8", "fitnet", weight, ["none", *sweep["arms"]], sweep["seeds"])
        for weight in weights
    ]
    layers = layers_of("resnet56")
    for weight, values, (variance, freedom) in zip(weights, tables, moderated(tables), strict=True):
        for arm in sweep["arms"]:
            mean = (values[layers[arm]] - values[""]).mean()
            name = f"09_hint_weight-fitnet:{arm}-{weight}"
            numbers[name] = interval(mean, np.sqrt(2 * variance / len(values)), freedom)
    # The deepest layer's share of what the stage ends give.
    mixed = ("stage-ends", "deepened-cka-linear", "shallowed-cka-linear", "pursuhint-cka-linear")
    cells, tables = grid(runs, mixed)
    for cell, values, (variance, freedom) in zip(cells, tables, moderated(tables), strict=True):
        ends, deepened, shallowed, paper = (values[layers_of(cell[0])[arm]] for arm in mixed)
        share = ((ends - shallowed + deepened - paper) / 2).mean()
        name = f"10_deepest_point:{'-'.join(cell)}-deepest"
        numbers[name] = interval(share, np.sqrt(variance / len(values)), freedom)
    return numbers


def named() -> list[str]:
    text = (CONFIG / "notes" / "cifar100-lite.md").read_text().partition("## answer")[2].partition("\n## ")[0]
    return sorted(set(re.findall(r"\{([\w.+-]+:[\w.+-]+)\}", text)))


@pytest.mark.parametrize("name", named())
def test_a_number_of_the_answer_follows_from_the_records(name, expected):
    step, _, number = name.partition(":")
    published = stored(RESULTS / "numbers" / f"{step}.json")[number]["values"]
    if isinstance(published[0], str):
        assert published == expected[name]
    else:
        assert published == pytest.approx(expected[name], rel=0, abs=1e-9)
