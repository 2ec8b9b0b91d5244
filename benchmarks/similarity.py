"""How fast is the similarity code, how much memory does it take, and how slow is the naive way? One table, a
verdict per target.

    python benchmarks/similarity.py [--stream] [--json FILE]

Everything runs on the CPU with all its cores; other programs that run at the same time make every time
longer. Each case has a process of its own, so that its peak of memory is its own too.

The features are synthetic: a residual stream of non-negative channels, x ← ReLU(x + random map of x + noise),
which a wider random map takes over at the border of a stage. Its two sizes were chosen so that the paper's
k-means cycles for some seeds (with both at 0.3 it settles for all of 40); the times per pair do not depend on
them.

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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from tabulate import tabulate
from torch import Tensor

from pursuhint_lib.clustering import HintPoints, choose_hint_points
from pursuhint_lib.files import write_json
from pursuhint_lib.records import provenance
from pursuhint_lib.similarity import similarity_matrices

# (layers, channels) of each stage.
Stages = Sequence[tuple[int, int]]

# Size of the random map of a residual block, as a share of the stream, and of the noise, for a stream that
# starts with size 1.
CHANGE = 0.5
NOISE = 1.0
# The paper's K, and the rounds after which its k-means gives up.
K = 3
MOST_ROUNDS = 80
# Rows that are written to disk at once.
ROWS = 5000
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


def naive_r2(x: np.ndarray, y: np.ndarray) -> float:
    """R² of uncentred features [N, C] by a QR factorisation of each."""
    bases = [np.linalg.qr(layer)[0] for layer in (x, y)]
    return np.linalg.norm(bases[0].T @ bases[1]) ** 2 / min(x.shape[1], y.shape[1])


def centre_gram(gram: np.ndarray) -> np.ndarray:
    """Double-centre a Gram matrix [N, N] in place."""
    means = gram.mean(axis=0)
    means -= means.mean() / 2
    gram -= means[:, None]
    gram -= means
    return gram


def published_centre_gram(gram: np.ndarray) -> np.ndarray:
    """Double-centre a copy of a Gram matrix [N, N] that has been checked to be symmetric."""
    if not np.allclose(gram, gram.T):
        raise ValueError("a Gram matrix must be symmetric")
    return centre_gram(gram.copy())


def gram_linear_cka(x: np.ndarray, y: np.ndarray, centre: Callable[[np.ndarray], np.ndarray]) -> float:
    """Linear CKA of features [N, C] by the double-centred Gram matrix [N, N] of each."""
    grams = [layer @ layer.T for layer in (x, y)]
    grams = [centre(gram) for gram in grams]
    sizes = [np.linalg.norm(gram) for gram in grams]
    return grams[0].ravel() @ grams[1].ravel() / (sizes[0] * sizes[1])


naive_linear_cka = partial(gram_linear_cka, centre=centre_gram)
published_linear_cka = partial(gram_linear_cka, centre=published_centre_gram)


@dataclass(frozen=True)
class Rival:
    """A naive way to compare two layers.

    **Arguments:** ``metric`` that gives the same value here; ``name`` for people; ``compare`` two layers;
    ``pairing`` picks the pairs of stages it is timed on; ``repeats`` of each; ``target`` how many times
    faster a whole k-means shall be here; ``reason`` why values may differ.
    """

    metric: str
    name: str
    compare: Callable[[np.ndarray, np.ndarray], float]
    pairing: Callable[[range, int], Iterator[tuple[int, int]]]
    repeats: int
    target: float
    reason: str = ""


RIVALS = (
    Rival(
        "r2-raw",
        "naive R²",
        naive_r2,
        itertools.combinations_with_replacement,
        5,
        200,
        " (QR takes channels that are always 0 for directions)",
    ),
    Rival("cka-linear", "naive linear CKA", naive_linear_cka, itertools.combinations, 1, 3000),
    Rival("cka-linear", "published linear CKA", published_linear_cka, itertools.combinations, 1, 3000),
)


def random_maps(stages: Stages, generator: torch.Generator) -> list[Tensor]:
    """Map [C_in, C_out] of each layer; square ones are small, for they only change the stream."""
    widths = [stages[0][1], *(width for count, width in stages for _ in range(count))]
    maps = [torch.randn(shape, generator=generator) / shape[0] ** 0.5 for shape in itertools.pairwise(widths)]
    return [CHANGE * matrix if matrix.shape[0] == matrix.shape[1] else matrix for matrix in maps]


def residual_stream(maps: Sequence[Tensor], images: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Features float32 [images, C_out] after each layer."""
    x = torch.randn(images, len(maps[0]), generator=generator).relu()
    for matrix in maps:
        change = (x @ matrix).add_(torch.randn(images, matrix.shape[1], generator=generator), alpha=NOISE)
        x = (change + x if change.shape == x.shape else change).relu_()
        yield x


def make_features(stages: Stages, images: int, seed: int) -> dict[str, Tensor]:
    """Layer name → features float32 [images, C]."""
    generator = torch.Generator().manual_seed(seed)
    return {
        str(i): x
        for i, x in enumerate(residual_stream(random_maps(stages, generator), images, generator), start=1)
    }


def in_own_process(function: Callable, *arguments):
    """What the function returns, computed in a fresh interpreter."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def timed(function: Callable, *arguments) -> tuple:
    """What the function returns, and how many seconds it takes."""
    begun = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - begun


def held_bytes() -> int:
    """Memory of this process that is in RAM."""
    return psutil.Process().memory_info().rss


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


def anonymous_bytes() -> int:
    """Memory of this process that is not backed by a file (Linux)."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


@contextmanager
def sampled_memory() -> Iterator[list[int]]:
    """Anonymous memory at the start and every 20 ms from then on."""
    samples, stop = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            samples.append(anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        stop.set()
        watcher.join()


def write_features(folder: Path, stages: Stages, images: int) -> None:
    """One raw float32 file per layer, named by its number."""
    generator = torch.Generator().manual_seed(0)
    maps = random_maps(stages, generator)
    for start in range(0, images, ROWS):
        for number, x in enumerate(residual_stream(maps, min(ROWS, images - start), generator)):
            with (folder / str(number)).open("ab") as file:
                file.write(x.numpy().tobytes())


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


def foreign_seconds() -> float:
    """Processor seconds, since the machine started, that did not go into this program and the processes it
    has waited for.
    """
    machine, own = psutil.cpu_times(), os.times()
    return (
        sum(machine)
        - machine.idle
        - getattr(machine, "iowait", 0)
        - (own.user + own.system + own.children_user + own.children_system)
    )


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
