"""How fast is the similarity code, how much memory does it take, and how slow is the naive way? One table, a
verdict per target.

    python benchmarks/similarity.py [--stream] [--json FILE]

Everything runs on the CPU with all its cores; other programs that run at the same time make every time
longer. Each case has a process of its own, so that its peak of memory is its own too.

The features are synthetic (benchmarks/synthetic_features.py).

The naive way is that of the paper's public capsule: its k-means compares every layer with every centre anew
in each round, R² by two QR factorisations and linear CKA by two Gram matrices [N, N], here in float64. The
capsule also copies each Gram matrix and checks that it is symmetric, which takes most of its time:
"published" linear CKA does so too, "naive" linear CKA does not.

How often the capsule compares depends on the rounds of its k-means, which is why ratios are given for a
typical seed and for 80 rounds: that is what it pays when it cycles, as it did on a real ResNet-110.
"""

import argparse
import itertools
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import torch
from naive_similarity import RIVALS, Rival
from resources import foreign_seconds, held_bytes, sampled_memory
from synthetic_features import Stages, make_features, write_features
from tabulate import tabulate
from torch import Tensor

from pursuhint_lib.clustering import HintPoints, choose_hint_points
from pursuhint_lib.files import write_json
from pursuhint_lib.records import provenance
from pursuhint_lib.similarity import similarity_matrices

# The paper's K, and the rounds after which its k-means gives up.
K = 3
MOST_ROUNDS = 80
GB = 1e9


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    **Arguments:** ``small``, ``large``, ``streamed`` stages of the three networks; ``images`` of the first
    two, ``streamed_images`` of the third, ``streamed_rbf_images`` of its RBF CKA; ``seeds`` for which the
    rounds of k-means are counted.
    """

    small: Stages = ((18, 16), (18, 32), (18, 64))
    large: Stages = ((3, 256), (4, 512), (6, 1024), (3, 2048))
    streamed: Stages = ((3, 2048),)
    images: int = 10_000
    streamed_images: int = 50_000
    streamed_rbf_images: int = 2_000
    seeds: int = 20


@dataclass(frozen=True)
class Row:
    """One line of the table; without a ``limit`` it is for information.

    **Arguments:** ``value`` in ``unit``; ``limit`` the target, a minimum for ratios (unit ``×``) and
    otherwise a maximum; ``how`` what the value is made of.
    """

    what: str
    value: float
    unit: str
    limit: float | None = None
    how: str = ""

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        good = self.value >= self.limit if self.unit == "×" else self.value < self.limit
        return "met" if good else "MISSED"

    @property
    def target(self) -> str:
        return "" if self.limit is None else f"{'≥' if self.unit == '×' else '<'} {self.limit:,g} {self.unit}"


def in_own_process(function: Callable, *arguments):
    """What the function returns, computed in a fresh interpreter."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def timed(function: Callable, *arguments) -> tuple:
    """What the function returns, and how many seconds it takes."""
    begun = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - begun


def measure_matrices(stages: Stages, images: int, metrics: Sequence[str]) -> dict:
    """Seconds of the first call, and bytes: of the bare interpreter with its libraries, of the features, held
    before the call, at the peak.
    """
    bare = held_bytes()
    features = make_features(stages, images, seed=0)
    before = held_bytes()
    _, seconds = timed(similarity_matrices, features, metrics)
    # macOS counts bytes, Linux kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": seconds,
        "bare": bare,
        "features": sum(x.nbytes for x in features.values()),
        "before": before,
        "peak": peak,
    }


def count_rounds(stages: Stages, images: int, seeds: int) -> dict[str, list[int]]:
    """Metric → rounds that the paper's k-means takes on the features of each seed; 80 if it cycles."""
    rounds: dict[str, list[int]] = {rival.metric: [] for rival in RIVALS}
    for seed in range(seeds):
        for metric, matrix in similarity_matrices(make_features(stages, images, seed), list(rounds)).items():
            rounds[metric].append(choose_hint_points(matrix, K).iterations)
    return rounds


def evaluations(points: HintPoints) -> int:
    """How often the capsule's k-means compares two layers: each layer with each centre in each round."""
    return len(points.labels) * len(points.indices) * points.iterations


def stage_pairs(rival: Rival, stages: Stages) -> list[tuple[int, int]]:
    """Layers to compare: the first of one stage with the last of another or of the same, as the rival pairs
    stages.
    """
    ends = list(itertools.accumulate(count for count, _ in stages))
    return [(ends[a] - stages[a][0], ends[b] - 1) for a, b in rival.pairing(range(len(stages)), 2)]


def compare_ways(rival: Rival, stages: Stages, images: int, seed: int) -> dict:
    """Seconds of a pair the naive way (each time, and their median) and of matrix and k-means here, on the
    same features.

    Also the rounds and comparisons of that k-means, and the largest difference between the values of the two
    ways.
    """
    features = make_features(stages, images, seed)
    layers = list(features.values())

    def here() -> tuple[Tensor, HintPoints]:
        matrix = similarity_matrices(features, [rival.metric])[rival.metric]
        return matrix, choose_hint_points(matrix, K)

    matrix, points = here()
    naive, differences = [], []
    for i, j in stage_pairs(rival, stages):
        x, y = (layers[index].double().numpy() for index in (i, j))
        for _ in range(rival.repeats):
            value, seconds = timed(rival.compare, x, y)
            naive.append(seconds)
        differences.append(abs(value - float(matrix[i, j])))
    return {
        "seed": seed,
        "rounds": points.iterations,
        "settled": points.converged,
        "evaluations": evaluations(points),
        "layers": len(layers),
        "naive_seconds": naive,
        "naive_median": statistics.median(naive),
        "here_seconds": statistics.median(timed(here)[1] for _ in range(3)),
        "largest_difference": max(differences),
    }


def ratio_row(rival: Rival, found: dict, case: str, compared: int, limit: float | None = None) -> Row:
    """How many times faster this project is if the naive way makes so many comparisons."""
    naive = compared * found["naive_median"]
    how = (
        f"{compared:,} comparisons of {found['naive_median']:.3g} s = {naive:,.0f} s, here "
        f"{found['here_seconds']:.2f} s"
    )
    return Row(f"{rival.name} / here: {case}", naive / found["here_seconds"], "×", limit, how)


def ratio_rows(rival: Rival, sizes: Sizes, rounds: Sequence[int]) -> tuple[list[Row], list[dict]]:
    """Ratios for a typical seed, for 80 rounds and for all pairs once, and the measurements behind them."""
    typical = rounds.index(statistics.median_low(rounds))
    cycling = [seed for seed, taken in enumerate(rounds) if taken == MOST_ROUNDS]
    found = []
    for seed in (typical, *cycling[:1]):
        tell(f"{rival.name} of a few pairs, seed {seed}")
        found.append(in_own_process(compare_ways, rival, sizes.small, sizes.images, seed))
    usual, longest = found[0], found[-1]
    layers = usual["layers"]
    long = f"seed {longest['seed']}, which cycles" if cycling else "if it cycled; no seed here does"
    rows = [
        ratio_row(
            rival,
            usual,
            f"{usual['rounds']} rounds (seed {usual['seed']}, the median of all)",
            usual["evaluations"],
            rival.target,
        ),
        ratio_row(rival, longest, f"{MOST_ROUNDS} rounds ({long})", layers * K * MOST_ROUNDS, rival.target),
        ratio_row(rival, usual, "each pair once, no rounds", layers * (layers + 1) // 2),
    ]
    return rows, found


def measure_mapped(folder: Path, stages: Stages, images: int, rbf_images: int) -> dict:
    """Seconds and anonymous memory of matrices made from memory-mapped features, and seconds of RBF CKA of
    two of them.
    """
    widths = [width for count, width in stages for _ in range(count)]
    files = [torch.from_file(str(folder / str(i)), size=images * width) for i, width in enumerate(widths)]
    features = {str(i): file.view(images, -1) for i, file in enumerate(files)}
    with sampled_memory() as samples:
        _, seconds = timed(similarity_matrices, features, ["r2", "cka-linear"])
    few = {name: layer[:rbf_images] for name, layer in itertools.islice(features.items(), 2)}
    return {
        "seconds": seconds,
        "anonymous_before": samples[0],
        "anonymous_peak": max(samples),
        "features": sum(file.nbytes for file in files),
        "rbf_seconds": timed(similarity_matrices, few, ["cka-rbf"])[1],
    }


def stream_rows(sizes: Sizes) -> tuple[list[Row], dict]:
    """Seconds and memory of features that stay on disk."""
    stages, images = sizes.streamed, sizes.streamed_images
    with tempfile.TemporaryDirectory() as folder:
        tell(f"writing features of {images} images to {folder}")
        in_own_process(write_features, Path(folder), stages, images)
        tell("R² and linear CKA of memory-mapped features")
        found = in_own_process(measure_mapped, Path(folder), stages, images, sizes.streamed_rbf_images)
    size, before, peak = (found[name] / GB for name in ("features", "anonymous_before", "anonymous_peak"))
    what = f"{sum(count for count, _ in stages)} layers on disk, {size:.2f} GB"
    rows = [
        Row(f"{what}: R² + linear CKA", found["seconds"], "s", how=f"{images} images"),
        Row(
            f"{what}: memory taken",
            peak - before,
            "GB",
            size / 2,
            f"anonymous: {before:.2f} GB before, {peak:.2f} GB at the peak",
        ),
        Row(
            f"{what}: RBF CKA of a pair", found["rbf_seconds"], "s", how=f"{sizes.streamed_rbf_images} images"
        ),
    ]
    return rows, found


def matrix_rows(sizes: Sizes) -> tuple[list[Row], dict]:
    """Seconds and memory of the matrices of the two networks."""
    cases = (
        ("R² + linear CKA", sizes.small, ("r2", "cka-linear"), 4, 2),
        ("RBF CKA", sizes.small, ("cka-rbf",), 25, 2),
        ("R² + linear CKA", sizes.large, ("r2", "cka-linear"), 60, None),
    )
    rows, figures = [], {}
    for name, stages, metrics, seconds, memory in cases:
        what = f"{sum(count for count, _ in stages)} layers: {name}"
        tell(what)
        found = figures[what] = in_own_process(measure_matrices, stages, sizes.images, metrics)
        bare, features, before = (found[name] / GB for name in ("bare", "features", "before"))
        how = (
            f"{before:.2f} GB before the first product: interpreter with libraries {bare:.2f}, features "
            f"{features:.2f}"
        )
        shape = ", ".join(f"{count}×{width}" for count, width in stages)
        rows.append(Row(what, found["seconds"], "s", seconds, f"{shape} channels, {sizes.images} images"))
        rows.append(Row(f"{what}, peak memory", found["peak"] / GB, "GB", memory, how))
    return rows, figures


def rounds_text(metric: str, rounds: Sequence[int]) -> str:
    """For how many rounds the paper's k-means runs."""
    settled = [taken for taken in rounds if taken < MOST_ROUNDS]
    cycling = [str(seed) for seed, taken in enumerate(rounds) if taken == MOST_ROUNDS]
    course = f"settles for {len(settled)} of {len(rounds)} seeds" + (
        f", after {min(settled)} to {max(settled)} rounds" if settled else ""
    )
    cycles = f"it cycles to {MOST_ROUNDS} rounds for {'seeds ' + ', '.join(cycling) if cycling else 'none'}"
    return f"The paper's k-means (K = {K}) under {metric} {course}; {cycles}."


def values_text(rival: Rival, found: Sequence[dict]) -> str:
    """How far the values of the two ways are apart."""
    apart = max(comparison["largest_difference"] for comparison in found)
    return f"Values of {rival.name} and of {rival.metric} here differ by at most {apart:.2g}{rival.reason}."


def measure(sizes: Sizes, stream: bool) -> tuple[list[Row], list[str], dict]:
    """Rows of the table, sentences about the rounds, and all figures."""
    rows, matrices = matrix_rows(sizes)
    figures = {"matrices": matrices}
    tell(f"rounds of k-means for {sizes.seeds} seeds")
    figures["rounds"] = in_own_process(count_rounds, sizes.small, sizes.images, sizes.seeds)
    sentences = [rounds_text(metric, rounds) for metric, rounds in figures["rounds"].items()]
    for rival in RIVALS:
        added, figures[rival.name] = ratio_rows(rival, sizes, figures["rounds"][rival.metric])
        rows += added
        sentences.append(values_text(rival, figures[rival.name]))
    if stream:
        added, figures["stream"] = stream_rows(sizes)
        rows += added
    return rows, sentences, figures


def tell(message: str) -> None:
    """Say on stderr what is being done."""
    print(f"{datetime.now():%H:%M:%S} {message} …", file=sys.stderr, flush=True)


def conditions() -> dict:
    """Date, cores, processor and versions."""
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"date": date, "cores": os.cpu_count(), **provenance(torch.device("cpu"), "synthetic features")}


def print_report(rows: Sequence[Row], sentences: Sequence[str], where: dict) -> None:
    """The table, with what it was measured on."""
    versions = where["versions"]
    print(f"{where['device']}, {where['cores']} cores, {where['threads']} threads; {where['date']}")
    print(f"Python {where['python']}, torch {versions['torch']}, numpy {versions['numpy']}")
    print(f"Other programs kept {where['foreign_cores']:.2f} cores busy meanwhile.\n")
    cells = [
        (
            row.what,
            f"{row.value:,.{0 if row.value >= 100 else 2}f} {row.unit}",
            row.target,
            row.verdict,
            row.how,
        )
        for row in rows
    ]
    print(
        tabulate(
            cells,
            headers=("what", "measured", "target", "verdict", "how"),
            disable_numparse=True,
            colalign=("left", "right", "right"),
        ),
        "\n",
    )
    print(*sentences, sep="\n")


def main(arguments: Sequence[str]) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description="Measure the similarity code against its targets and against the naive way."
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="also use features that stay on disk (Linux; 1.2 GB in a temporary folder, minutes)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all figures, with the conditions they were measured under",
    )
    options = parser.parse_args(arguments)
    where = conditions()
    begun, foreign = time.monotonic(), foreign_seconds()
    rows, sentences, figures = measure(Sizes(), options.stream)
    where["foreign_cores"] = (foreign_seconds() - foreign) / (time.monotonic() - begun)
    print_report(rows, sentences, where)
    if options.json:
        table = [{**asdict(row), "verdict": row.verdict} for row in rows]
        write_json(options.json, {"conditions": where, "table": table, **figures})


if __name__ == "__main__":
    main(sys.argv[1:])
