"""A small image tree in ImageNet's form, <tree>/{train,val}/<class>/<image>.JPEG, made from CIFAR-100: for
trying what is made for ImageNet.
"""

import shutil
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..files import draft_beside

# Classes, evenly spaced among the hundred, and images of each for training and evaluation.
SAMPLE_CLASSES = 10
SAMPLE_IMAGES = (100, 20)
# Longer and shorter sides in pixels, in turns, since no two images of ImageNet need be of one size.
SIDES = ((160, 120), (128, 128), (96, 144))
QUALITY = 90


def make_sample(arrays: dict[str, Tensor], tree: Path) -> None:
    """Write the tree, whole or not at all.

    **Arguments:** ``arrays`` of CIFAR-100: ``{train,test}_images`` uint8 [N, 3, 32, 32] and
    ``{train,test}_labels`` int64 [N]; ``tree`` the folder.
    """
    draft = draft_beside(tree)
    classes = int(arrays["train_labels"].max()) + 1
    for split, folder, count in zip(("train", "test"), ("train", "val"), SAMPLE_IMAGES, strict=True):
        for position in range(SAMPLE_CLASSES):
            label = position * classes // SAMPLE_CLASSES
            (draft / folder / f"class{label:02d}").mkdir(parents=True)
            rows = (arrays[f"{split}_labels"] == label).nonzero()[:count, 0].tolist()
            for number, row in enumerate(rows):
                image = Image.fromarray(arrays[f"{split}_images"][row].permute(1, 2, 0).numpy())
                enlarged = image.resize(SIDES[number % len(SIDES)], Image.Resampling.BICUBIC)
                enlarged.save(
                    draft / folder / f"class{label:02d}" / f"{number:03d}.JPEG",
                    format="JPEG",
                    quality=QUALITY,
                )
    try:
        draft.rename(tree)
    except OSError:
        # Another process was faster, and wrote the same.
        shutil.rmtree(draft)
        if not tree.is_dir():
            raise
