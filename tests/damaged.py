"""Files of a small study that can be damaged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from damage import Kind
from PIL import Image

from pursuhint_lib import records, training
from pursuhint_lib.data import load_splits
from pursuhint_lib.files import sealed, unsealed
from pursuhint_lib.models import build_model, load_checkpoint
from pursuhint_lib.paths import (
    StudyPaths,
    array_cache,
    data_root,
    manifest_entry,
)
from pursuhint_lib.settings import Data
from pursuhint_lib.study.experiments.stability import stability_frame
from pursuhint_lib.study.grid.hint_layers import hint_choices, layer_similarity
from pursuhint_lib.study.grid.profiles import load_profile

CPU = torch.device("cpu")
PATHS = StudyPaths("smoke")
TEACHER = "resnet14"


def profile():
    return load_profile("smoke")


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


# ---- what has a checksum: refused whatever the damage


def a_record() -> Kind:
    settings, other = (profile().teacher_settings(TEACHER, seed) for seed in (None, 1))
    files = [PATHS.records / f"{records.record_name(run)}.json" for run in (settings, other)]
    return Kind(files[0], files[1].read_bytes(), lambda: records.load("smoke", settings), flips=200)


def similarity() -> Kind:
    path = PATHS.similarity(TEACHER)

    def read() -> list:
        report = layer_similarity(profile(), TEACHER)
        return [
            report.sub_blocks,
            report.images,
            {metric: matrix.tolist() for metric, matrix in report.layer_map.similarity.items()},
        ]

    content = path.read_bytes()
    path.unlink()
    layer_similarity(replace(profile(), profile_images=80), TEACHER)
    other = path.read_bytes()
    path.write_bytes(content)
    return Kind(path, other, read, flips=60)


def hint_points() -> Kind:
    path, other = (PATHS.hint_points(TEACHER, k) for k in (3, 2))
    return Kind(
        path, other.read_bytes(), lambda: (repr(hint_choices(profile(), TEACHER, 3)), path.read_bytes())
    )


def stability() -> Kind:
    path = PATHS.stability(TEACHER, 3)
    content = unsealed(json.loads(path.read_text(encoding="utf-8")))
    other = json.dumps(
        sealed({**content, "settings": {**content["settings"], "k": 2}, "changes": content["changes"][:3]})
    )
    return Kind(path, other.encode(), lambda: stability_frame(profile(), TEACHER, 3).to_json(), flips=50)


def teacher_weights() -> Kind:
    settings, other = (profile().teacher_settings(TEACHER, seed) for seed in (None, 1))
    path, second = (PATHS.weights(records.record_name(run)) for run in (settings, other))
    return Kind(path, second.read_bytes(), lambda: plain(training.load_teacher(settings).state_dict()))


def manifest() -> Kind:
    weights = teacher_weights()
    other = PATHS.weights(records.record_name(profile().teacher_settings(TEACHER, 1)))
    path = manifest_entry(weights.path)
    return Kind(path, manifest_entry(other).read_bytes(), weights.read, flips=25, named=(str(weights.path),))


def given_weights() -> Kind:
    """Weights of one's own, without a manifest entry: torch has written a checksum of every tensor."""
    path = data_root() / "mine.pth"
    path.parent.mkdir(exist_ok=True)
    torch.save(build_model("resnet20", 10, 1).state_dict(), path)
    other = path.read_bytes()
    torch.manual_seed(1)
    torch.save(build_model("resnet8x0.25", 10, 1).state_dict(), path)

    def read() -> dict:
        model = build_model("resnet8x0.25", 10, 1)
        load_checkpoint(model, path)
        return plain(model.state_dict())

    return Kind(path, other, read, flips=60)


def array_of_a_tree() -> Kind:
    for number, name in enumerate(("first", "second")):
        write_tree(data_root() / name, number, "png")
    settings = [Data("imagefolder", root=name, image_size=16) for name in ("first", "second")]
    for one in settings:
        load_splits(one, CPU)
    path, other = (array_cache(f"{name}-16") for name in ("first", "second"))
    return Kind(path, other.read_bytes(), lambda: pixels(settings[0]), flips=60)


def write_tree(root: Path, seed: int, ending: str) -> None:
    draws = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(2):
                Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                    root / split / name / f"{number}.{ending}"
                )


def pixels(settings: Data) -> list:
    splits = load_splits(settings, CPU)
    return [
        splits.checksum,
        splits.train.images.tolist(),
        splits.train.labels.tolist(),
        splits.test.images.tolist(),
    ]


def an_image(ending: str = "png") -> Kind:
    """An image of a tree that was not decoded yet."""
    root = data_root() / f"tree-{ending}"
    write_tree(root, 0, ending)

    def read() -> list:
        array_cache(f"{root.name}-16").unlink(missing_ok=True)
        return pixels(Data("imagefolder", root=root.name, image_size=16))

    return Kind(root / "train" / "a" / f"0.{ending}", b"no image", read, flips=60)


CUT_OR_ZEROED = {"empty", "half", "no end", "no beginning", "zeros", "zeros in the middle"}
# Kind → damages that are refused whatever bits they touch, and what comes of one file in the place of
# another.
KINDS = {
    a_record: (CUT_OR_ZEROED, "refused"),
    similarity: (CUT_OR_ZEROED, "same"),
    hint_points: (CUT_OR_ZEROED, "same"),
    stability: (CUT_OR_ZEROED, "same"),
    teacher_weights: (CUT_OR_ZEROED, "refused"),
    manifest: (CUT_OR_ZEROED, "refused"),
    given_weights: (CUT_OR_ZEROED, "refused"),
    array_of_a_tree: (set(), "same"),
    an_image: (CUT_OR_ZEROED - {"no end"}, "refused"),
}
