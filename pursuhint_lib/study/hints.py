"""Similarity matrices and hint points of a teacher as committed files: loaded when they are there, made when not."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import training
from ..data import load_splits
from ..files import write_json
from ..paths import StudyPaths
from ..profiling import profile_layers, similarity_matrices
from ..records import provenance
from ..settings import Profile, SettingsError, resolved
from .arms import Choice, LayerMap, choose_points
from .profile import network_points

# Digits kept of a similarity. Points are always chosen from the stored matrix, so a reader gets the same ones.
DIGITS = 6


@dataclass(frozen=True)
class LayerReport:
    """What profiling a teacher found.

    **Arguments:**

    - ``sub_blocks``: one dict per sub-block: number (1-based), name, channels, size (pixels), dead (channels that
      are the same for every image).
    - ``layer_map``: similarity matrices and stage ends. ``images``: N. ``provenance``: seconds, device, versions.
    """

    sub_blocks: list[dict]
    layer_map: LayerMap
    images: int
    provenance: dict


def _wanted(profile: Profile, teacher: str) -> dict:
    return {"teacher": resolved(profile.teacher_settings(teacher)), "images": profile.profile_images}


def _read(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is damaged ({error}); delete it to make it again") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} is damaged (no JSON object); delete it to make it again")
    return content


def stored_similarity(profile: Profile, teacher: str) -> LayerReport | None:
    """The stored report of a teacher, if it was made with the profile's settings and has all its metrics."""
    content = _read(StudyPaths(profile.name).similarity(teacher))
    if content is None or content.get("settings") != _wanted(profile, teacher):
        return None
    if not set(profile.metrics) <= set(content["similarity"]):
        return None
    matrices = {metric: np.array(content["similarity"][metric]) for metric in profile.metrics}
    layer_map = LayerMap(len(content["sub_blocks"]), tuple(content["stage_ends"]), matrices)
    return LayerReport(content["sub_blocks"], layer_map, content["images"], content["provenance"])


def layer_similarity(profile: Profile, teacher: str) -> LayerReport:
    """Similarity of the teacher's sub-blocks on the first ``profile_images`` training images, from the file or computed."""
    found = stored_similarity(profile, teacher)
    if found is not None:
        return found
    settings = profile.teacher_settings(teacher)
    model = training.load_teacher(settings)
    points = network_points(teacher, profile.data)
    splits = load_splits(profile.data, next(model.parameters()).device)
    images = splits.train.first(profile.profile_images)
    features = profile_layers(model, images, points.candidates)
    matrices = similarity_matrices(features, profile.metrics)
    sub_blocks = [
        {"number": i + 1, "name": name, "channels": c, "size": f"{h}×{w}", "dead": int((features[name] == features[name][0]).all(0).sum())}
        for i, (name, (c, h, w)) in enumerate(zip(points.candidates, points.shapes, strict=True))
    ]
    content = {
        "settings": _wanted(profile, teacher),
        "images": len(images),
        "sub_blocks": sub_blocks,
        "stage_ends": points.indices(points.ends),
        "similarity": {metric: np.round(matrix.numpy(), DIGITS).tolist() for metric, matrix in matrices.items()},
        "provenance": provenance(images.device, splits.checksum),
    }
    write_json(StudyPaths(profile.name).similarity(teacher), content)
    return stored_similarity(profile, teacher)


def hint_choices(profile: Profile, teacher: str, k: int) -> dict[str, Choice]:
    """Arm → hint points, from the teacher's similarity matrices; also written to the hints folder."""
    report = layer_similarity(profile, teacher)
    choices = {arm: choose_points(arm, report.layer_map, k) for arm in profile.arms}
    names = network_points(teacher, profile.data).candidates
    content = {"teacher": teacher, "k": k, "images": report.images}
    for arm, choice in choices.items():
        entry = {"sub_blocks": [i + 1 for i in choice.indices], "names": [names[i] for i in choice.indices], "reason": choice.reason}
        if choice.clusters:
            clusters = choice.clusters
            entry |= {"clusters": [label + 1 for label in clusters.labels], "objective": round(clusters.objective, DIGITS)}
            entry |= {"converged": clusters.converged, "iterations": clusters.iterations}
        content[arm] = entry
    path = StudyPaths(profile.name).hint_points(teacher, k)
    if _read(path) != json.loads(json.dumps(content)):
        write_json(path, content)
    return choices
