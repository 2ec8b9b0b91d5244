"""How far the paper's hint layers depend on chance: other images, fewer, test images, another teacher seed.

The clusters of the paper's k-means are found anew after each change; what each change gave is kept in a
committed file, so that figures are drawn again without a teacher.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor

from ... import training
from ...clustering import HintPoints, choose_hint_points
from ...data import Images, StreamedImages, evenly_spaced, load_splits
from ...paths import StudyPaths
from ...profiling import profile_layers
from ...progress import Progress
from ...records import provenance
from ...settings import Profile, TeacherSettings, resolved
from ...settings.user_code import is_import_path, sources
from ...similarity import KERNEL_METRICS, similarity_matrices
from ..grid.cells import Teaching
from ..grid.hint_layers import layer_similarity
from ..grid.profiles import network_points
from ..grid.stored import Stored

# RBF CKA compares all pairs of images, as metrics of one's own may: a bootstrap sample of them, and any other
# change, uses so many images at most.
PAIRWISE_IMAGES = {"bootstrap": 2_000, "images": 10_000, "test images": 10_000, "teacher seed": 10_000}


@dataclass(frozen=True)
class Change:
    """One change: of what ``kind``, which one (draw, number of images, seed), and the features after it."""

    kind: str
    value: int
    features: Mapping[str, Tensor]


def mean_shift(points: Sequence[int], reference: Sequence[int]) -> float:
    """Mean number of sub-blocks between the points of two choices, matched in depth order."""
    return float(np.mean(np.abs(np.sort(points) - np.sort(reference))))


def rand_index(labels: Sequence[int], reference: Sequence[int]) -> float:
    """The adjusted Rand index of two clusterings: 1 where they are the same, about 0 by chance."""
    # Here, since it takes a second, and most steps do without it.
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(reference, labels))


def further_teachers(profile: Profile, teacher: str) -> list[TeacherSettings]:
    """Settings of the teachers of other seeds."""
    return [profile.teacher_settings(teacher, seed) for seed in profile.stability.teacher_seeds]


def stability_file(profile: Profile, teacher: str, k: int) -> Stored:
    """What the changes gave, as one dict per change and metric."""
    own = sources(*profile.metrics)
    wanted = {
        "teacher": resolved(profile.teacher_settings(teacher)),
        "k": k,
        "images": profile.profile_images,
        "metrics": list(profile.metrics),
        "stability": resolved(profile.stability),
        **({"sources": [*own]} if own else {}),
    }
    path, make = StudyPaths(profile.name).stability(teacher, k), partial(_compute, profile, teacher, k)
    return Stored(path, wanted, partial(_whole, profile), make, teacher, profile.stability.draws)


def _whole(profile: Profile, content: dict) -> list[dict]:
    for row in content["changes"]:
        told = {"refused"} if "refused" in row else {"sub_blocks", "clusters"}
        if not {"kind", "value", "images", *told} <= row.keys() or row["metric"] not in profile.metrics:
            raise ValueError(f"a change is not whole: {row}")
    return content["changes"]


def stability_cells(profile: Profile, teacher: str, k: int) -> Iterator[Teaching | Stored]:
    """The further teachers, and the changes."""
    yield from map(Teaching, further_teachers(profile, teacher))
    yield stability_file(profile, teacher, k)


def stability_frame(profile: Profile, teacher: str, k: int) -> pd.DataFrame:
    """Every change under every metric, compared with the points on the profile's images; computed if it is
    not on file.

    **Returns:** columns kind, value, metric, images, points (0-based), ari (adjusted Rand index of the
    clusters), shift (mean, in sub-blocks), same (whether the points are the same); the last four are missing
    where a metric refused so few images.
    """
    rows = stability_file(profile, teacher, k).get()
    layer_map = layer_similarity(profile, teacher).layer_map
    references = {metric: choose_hint_points(layer_map.similarity[metric], k) for metric in profile.metrics}
    return pd.DataFrame([_compared(row, references[row["metric"]]) for row in rows])


def _compared(row: dict, reference: HintPoints) -> dict:
    shared = {key: row[key] for key in ("kind", "value", "metric", "images")}
    if "refused" in row:
        return {**shared, "points": None, "ari": float("nan"), "shift": float("nan"), "same": float("nan")}
    points = tuple(number - 1 for number in row["sub_blocks"])
    return {
        **shared,
        "points": points,
        "ari": rand_index(row["clusters"], reference.labels),
        "shift": mean_shift(points, reference.indices),
        "same": float(points == reference.indices),
    }


def stability_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of change and metric: repetitions, mean adjusted Rand index with 5 % and 95 %
    quantiles, mean shift, share of same layers.
    """
    rows = []
    for (kind, metric), group in frame.groupby(["kind", "metric"], sort=False):
        found = group.dropna(subset=["ari"])
        quantiles = found["ari"].quantile([0.05, 0.95]).tolist() if len(found) else [float("nan")] * 2
        row = {
            "change": kind,
            "metric": metric,
            "repetitions": len(group),
            "refused": len(group) - len(found),
        }
        row |= {"adjusted Rand index": found["ari"].mean(), "5 %": quantiles[0], "95 %": quantiles[1]}
        rows.append(row | {"mean shift": found["shift"].mean(), "same layers": found["same"].mean()})
    return pd.DataFrame(rows)


def selection_frequency(frame: pd.DataFrame, metrics: Sequence[str], layers: int) -> dict[str, np.ndarray]:
    """Metric → share of the bootstrap samples in which each sub-block is a hint layer, [L]."""
    shares = {}
    for metric in metrics:
        draws = frame[(frame["kind"] == "bootstrap") & (frame["metric"] == metric)]["points"].dropna()
        counts = np.bincount([index for points in draws for index in points], minlength=layers)
        shares[metric] = counts / max(1, len(draws))
    return shares


def _compute(profile: Profile, teacher: str, k: int) -> dict:
    model = training.load_teacher(profile.teacher_settings(teacher))
    candidates = network_points(teacher, profile.data).candidates
    splits = load_splits(profile.data, next(model.parameters()).device)

    def profiled(images: Images, network=model) -> dict[str, Tensor]:
        return profile_layers(network, images, candidates)

    settings = profile.stability
    count = min(profile.profile_images, len(splits.train))
    # Features of all images are kept at once, so that those of a data set which is streamed are too many.
    whole = () if isinstance(splits.train, StreamedImages) else (len(splits.train),)
    sizes = sorted({n for n in (*settings.images, *whole) if n <= len(splits.train)} - {count})
    others = further_teachers(profile, teacher)

    def changes() -> Iterator[Change]:
        features = profiled(splits.train.spread(count))
        generator = np.random.default_rng(0)
        for draw in range(settings.draws):
            chosen = generator.integers(count, size=count)
            yield Change("bootstrap", draw, {name: x[chosen] for name, x in features.items()})
        largest = profiled(splits.train.spread(sizes[-1])) if sizes and sizes[-1] > count else features
        for size in sizes:
            yield Change(
                "images", size, {name: x[evenly_spaced(size, len(x))] for name, x in largest.items()}
            )
        yield Change("test images", min(count, len(splits.test)), profiled(splits.test.spread(count)))
        for other in others:
            yield Change(
                "teacher seed", other.seed, profiled(splits.train.spread(count), training.load_teacher(other))
            )

    rows = []
    with Progress(
        f"stability of the hint layers of {teacher}", settings.draws + len(sizes) + 1 + len(others), "change"
    ) as progress:
        for change in changes():
            rows += [_chosen(change, metric, k) for metric in profile.metrics]
            progress.advance()
    return {"changes": rows, "provenance": provenance(splits.train.device, splits.checksum)}


def _chosen(change: Change, metric: str, k: int) -> dict:
    """The paper's layers on the changed features, numbers 1-based; a metric that refuses them says why."""
    features = change.features
    if metric in KERNEL_METRICS or is_import_path(metric):
        features = {
            name: x[evenly_spaced(PAIRWISE_IMAGES[change.kind], len(x))] for name, x in features.items()
        }
    row = {
        "kind": change.kind,
        "value": change.value,
        "metric": metric,
        "images": len(next(iter(features.values()))),
    }
    try:
        points = choose_hint_points(similarity_matrices(features, [metric])[metric], k)
    except ValueError as error:
        return {**row, "refused": str(error)}
    return {
        **row,
        "sub_blocks": [i + 1 for i in points.indices],
        "clusters": [label + 1 for label in points.labels],
    }
