"""Similarity matrices and hint layers of a teacher as committed files: loaded when they are there, made when
not.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from torch import Tensor

from ... import training
from ...attention import keep_maps
from ...data import Images, load_splits
from ...digits import settled
from ...files import naming_damage, read_json, sealed, write_json
from ...paths import StudyPaths
from ...profiling import profile_layers
from ...quality import layer_quality
from ...records import provenance, record_name
from ...settings import Profile, resolved, settings_hash
from ...settings.user_code import sources
from ...similarity import rank, similarity_matrices
from .arms import Choice, LayerMap, choose_points
from .profiles import network_points
from .stored import Stored

# Digits kept of a similarity. Points are always chosen from the stored matrix, so a reader gets the same
# ones.
DIGITS = 6


@dataclass(frozen=True)
class LayerReport:
    """What profiling a teacher found.

    **Arguments:**

    - ``sub_blocks``: one dict per sub-block: number (1-based), name, channels, size (pixels), dead (channels
      that are the same for every image), rank (directions that the features span), quality and its parts.
    - ``layer_map``: similarity matrices, stage ends and qualities. ``images``: N. ``provenance``: seconds,
      device, versions.
    - ``digest``: hash of the matrices, by which files that follow from them know them again.
    """

    sub_blocks: list[dict]
    layer_map: LayerMap
    images: int
    provenance: dict
    digest: str


def similarity_file(profile: Profile, teacher: str) -> Stored:
    """The comparison of a teacher's sub-blocks, as a ``LayerReport``."""
    return Stored(
        StudyPaths(profile.name).similarity(teacher),
        {"teacher": resolved(profile.teacher_settings(teacher)), "images": profile.profile_images},
        partial(_report, profile),
        partial(_compare, profile, teacher),
        teacher,
        comparisons=1,
    )


def stored_similarity(profile: Profile, teacher: str) -> LayerReport | None:
    """The stored report of a teacher, if it was made with the profile's settings and has all its metrics."""
    return similarity_file(profile, teacher).found()


def layer_similarity(profile: Profile, teacher: str) -> LayerReport:
    """Similarity of the teacher's sub-blocks on ``profile_images`` training images, from the file or
    computed.

    Where it is computed, the teacher's attention maps are kept too.
    """
    return similarity_file(profile, teacher).get()


def _report(profile: Profile, content: dict) -> LayerReport | None:
    if not set(profile.metrics) <= set(content["similarity"]) or not all(
        "quality" in block for block in content["sub_blocks"]
    ):
        return None
    # Made by other code of the user's, a matrix is another one's.
    if any(content.get("sources", {}).get(metric, []) != [*sources(metric)] for metric in profile.metrics):
        return None
    matrices = {metric: np.array(content["similarity"][metric]) for metric in profile.metrics}
    qualities = tuple(block["quality"] for block in content["sub_blocks"])
    layer_map = LayerMap(len(content["sub_blocks"]), tuple(content["stage_ends"]), matrices, qualities)
    digest = settings_hash(content["similarity"])
    return LayerReport(content["sub_blocks"], layer_map, content["images"], content["provenance"], digest)


def _compare(profile: Profile, teacher: str) -> dict:
    settings = profile.teacher_settings(teacher)
    model = training.load_teacher(settings)
    points = network_points(teacher, profile.data)
    splits = load_splits(profile.data, next(model.parameters()).device)
    images = splits.train.spread(profile.profile_images)
    features = profile_layers(model, images, points.candidates)
    matrices = similarity_matrices(features, profile.metrics)
    keep_maps(profile.name, record_name(settings), model, points.candidates, splits.test)
    content = {
        "images": len(images),
        "sub_blocks": [
            _sub_block(number, name, features[name], images, points.shapes[number - 1])
            for number, name in enumerate(features, start=1)
        ],
        "stage_ends": points.indices(points.ends),
        "similarity": {
            metric: np.round(matrix.numpy(), DIGITS).tolist() for metric, matrix in matrices.items()
        },
        "provenance": provenance(images.device, splits.checksum),
    }
    if own := {metric: [*found] for metric in profile.metrics if (found := sources(metric))}:
        content["sources"] = own
    return content


def _sub_block(number: int, name: str, features: Tensor, images: Images, shape: tuple[int, int, int]) -> dict:
    """What there is to say of one sub-block."""
    channels, height, width = shape
    quality = _rounded(vars(layer_quality(features, images.labels)))
    return {
        "number": number,
        "name": name,
        "channels": channels,
        "size": f"{height}×{width}",
        "dead": int((features == features[0]).all(0).sum()),
        "rank": rank(features),
        "quality": quality.pop("score"),
        **quality,
    }


def hint_choices(profile: Profile, teacher: str, k: int) -> dict[str, Choice]:
    """Arm → hint layers, chosen from the teacher's similarity matrices; also written to the hints folder,
    where all that trains with them reads them.
    """
    report = layer_similarity(profile, teacher)
    choices = {arm: choose_points(arm, report.layer_map, k) for arm in profile.arms}
    names = network_points(teacher, profile.data).candidates
    content = {"teacher": teacher, "k": k, "images": report.images, "similarity": report.digest}
    for arm, choice in choices.items():
        entry = {
            "sub_blocks": [i + 1 for i in choice.indices],
            "names": [names[i] for i in choice.indices],
            "reason": choice.reason,
        }
        if choice.students:
            entry["student_points"] = [j + 1 for j in choice.students]
        content[arm] = entry | _clustering(choice)
    path = StudyPaths(profile.name).hint_points(teacher, k)
    if read_json(path) != json.loads(json.dumps(content)):
        write_json(path, sealed(content))
    return choices


def stored_choices(profile: Profile, teacher: str, k: int, arms: Sequence[str]) -> dict[str, Choice] | None:
    """Arm → hint layers as they were chosen, without the clusters behind them; nothing while the teacher's
    layers are not compared. An arm that is in no file, as those of other profiles are, is chosen here.
    """
    report = stored_similarity(profile, teacher)
    if report is None:
        return None
    path = StudyPaths(profile.name).hint_points(teacher, k)
    content = read_json(path) or {}
    known = content if content.get("similarity") == report.digest else {}
    with naming_damage(path):
        return {
            arm: _read(known[arm]) if arm in known else choose_points(arm, report.layer_map, k)
            for arm in arms
        }


def _read(entry: dict) -> Choice:
    indices, students = (
        tuple(number - 1 for number in entry.get(key, ())) for key in ("sub_blocks", "student_points")
    )
    return Choice(indices, entry["reason"], students)


def _clustering(choice: Choice) -> dict:
    """The clustering behind an arm, numbers 1-based, with a reason per point."""
    clusters = choice.clusters
    if clusters is None:
        return {}
    content = {
        "clusters": [label + 1 for label in clusters.labels],
        **_rounded({"objective": clusters.objective}),
    }
    content |= {"converged": clusters.converged, "iterations": clusters.iterations}
    if clusters.cycle:
        content["cycle"] = [[i + 1 for i in centres] for centres in clusters.cycle]
    return content | {
        "reasons": [_rounded(asdict(reason) | {"margin": reason.margin}) for reason in choice.reasons]
    }


def _rounded(values: dict) -> dict:
    values = settled(values)
    return {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in values.items()}
