"""The listing of image trees: what is an image, what is a class, and what is said of a tree that is wrong."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from pursuhint_lib.data import DATASETS, DataError, tree
from pursuhint_lib.data.tree import WORDNET_ID, class_folders, digest, list_split, read_tree, try_images

IDS = ("n00000002", "n00000010", "n00000300")
KNOWN = replace(DATASETS["imagenet"], classes=3, counts=(9, 6))


@pytest.fixture
def root(tmp_path) -> Path:
    """Three classes with three training and two validation images each; written out of order."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in reversed(IDS):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in (11, 2, 103)[:count]:
                pixels = draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{number}.JPEG")
    return tmp_path / "pictures"


def imagenet(root: Path):
    """As ImageNet is read, but for the numbers."""
    return read_tree(root, ["val"], KNOWN, WORDNET_ID)


def refused(call, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what is listed


def names(root: Path) -> list[str]:
    return [os.fsdecode(name) for name in read_tree(root)[0].names]


def test_a_good_tree_is_listed_in_the_order_of_torchvision(root):
    for name in ("UPPER.PnG", "Ünder.webp", "notes.txt"):
        (root / "train" / IDS[1] / name).write_bytes(b"12")
    listing, val = read_tree(root)
    theirs = ImageFolder(root / "train")
    assert [(str(listing.path(i)), int(listing.labels[i])) for i in range(len(listing))] == theirs.samples
    assert listing.classes == val.classes == tuple(theirs.classes) == IDS
    assert listing.sizes.tolist() == [os.path.getsize(path) for path, _ in theirs.samples]
    assert listing.names.dtype.kind == "S"
    assert listing.labels.dtype == listing.sizes.dtype == np.int64


def test_class_names_of_different_length_sort_as_folders_do(tmp_path):
    for name in ("a", "a-b", "a.b"):  # as paths, "a-b/" would come before "a/"
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    listing = list_split(tmp_path, class_folders(tmp_path))
    assert listing.names.tolist() == [b"a/x.png", b"a-b/x.png", b"a.b/x.png"]


LEFT = [
    *(".ipynb_checkpoints/x.JPEG", "__MACOSX/x.JPEG", "@eaDir/x.JPEG", ".git/x.JPEG", ".DS_Store/x.JPEG"),
    *("$RECYCLE.BIN/x.JPEG", "lost+found/x.JPEG"),
    *("._x.png", f"._{IDS[0]}_2.JPEG", ".hidden.jpg", "x.png.part", "Thumbs.db"),
]


@pytest.mark.parametrize("place", ["train", f"train/{IDS[0]}"])
@pytest.mark.parametrize("left", LEFT)
def test_what_systems_and_tools_leave_is_neither_class_nor_image(root, left, place):
    before, path = names(root), root / place / left
    path.parent.mkdir(exist_ok=True)
    shutil.copy(next((root / "train" / IDS[0]).glob("*.JPEG")), path)
    assert names(root) == before


def test_names_of_any_encoding_are_listed_and_told(root):
    latin = os.fsencode(root / "train" / IDS[0]) + b"/caf\xe9.jpg"
    with open(latin, "wb") as file:
        file.write(b"no image")
    listing, _ = read_tree(root)
    assert latin in [os.fsencode(listing.path(index)) for index in range(len(listing))]
    assert r"caf\udce9.jpg is not a readable image" in refused(try_images, listing, 8)


def test_links_are_followed_and_each_folder_is_read_once(root, tmp_path):
    before, inner = names(root), root / "train" / IDS[0]
    shutil.move(root / "val", tmp_path / "elsewhere")
    (root / "val").symlink_to(tmp_path / "elsewhere")
    for name, target in (
        ("here", inner),
        ("up", root),
        ("itself", inner / "itself"),
        ("split", root / "train"),
    ):
        (inner / name).symlink_to(target)
    assert names(root) == before
    shutil.copytree(root / "val" / IDS[0], tmp_path / "more")
    for name in ("more", "again"):
        (inner / name).symlink_to(tmp_path / "more")
    assert len(names(root)) == len(before) + 2


@pytest.mark.parametrize("target", ["nowhere.jpg", "lost.jpg"])
def test_a_link_that_leads_nowhere_is_named(root, target):
    (root / "train" / IDS[0] / "lost.jpg").symlink_to(root / "train" / IDS[0] / target)
    assert f"{IDS[0]}/lost.jpg cannot be read: " in refused(read_tree, root)


# ---- which folders


@pytest.mark.parametrize(("there", "used"), [(("test", "val"), "test"), (("val",), "val")])
def test_evaluation_images_are_called_test_or_val(root, there, used):
    for name in {*there} - {"val"}:
        shutil.copytree(root / "val", root / name)
    assert read_tree(root)[1].folder == root / used
    assert imagenet(root)[1].folder == root / "val"


def test_a_flat_folder_of_test_images_without_labels_is_passed_over(root):
    (root / "test").mkdir()
    (root / "test" / "x.jpg").touch()
    assert read_tree(root)[1].folder == root / "val"


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ((), "no train/<class>/<image>, only nothing"),
        (("cifar10/", "mnist/", "a.txt", "b.txt"), "only a.txt, b.txt, cifar10 and 1 more"),
        (("train/a/",), "no val/<class>/<image>, only train"),
        (("train/a/", "test/a/"), "no val/<class>/<image>, only test, train"),
        (("train/x.jpg", "val/"), "no train/<class>/<image>, only train, val"),
        (("train/.a/", "val/"), "no train/<class>/<image>"),
        (("ILSVRC2012_img_train.tar",), "only ILSVRC2012_img_train.tar"),
    ],
)
def test_what_is_found_in_place_of_a_tree_is_told(tmp_path, entries, told):
    for entry in entries:
        path = tmp_path / entry
        path.mkdir(parents=True) if entry.endswith("/") else path.parent.mkdir(exist_ok=True)
        path.is_dir() or path.touch()
    message = refused(imagenet, tmp_path)
    assert message.startswith(f"{tmp_path} has ")
    assert told in message
    assert "docs/reproducing.md#imagenet" in message
    assert f"{tmp_path / 'x'} has no train/<class>/<image>, only nothing" in refused(imagenet, tmp_path / "x")


# ---- what is in them


def flat(root):
    for name in IDS:
        for file in (root / "val" / name).iterdir():
            file.rename(root / "val" / file.name)
        (root / "val" / name).rmdir()


def renamed(root):
    for split in ("train", "val"):
        (root / split / IDS[1]).rename(root / split / "ape")


def moved(root):
    first = next((root / "val" / IDS[2]).iterdir())
    first.rename(root / "val" / IDS[1] / first.name)


WRONG = {
    "flat validation images": (flat, ["no val/<class>/<image>"]),
    "a class in one split only": (
        lambda root: shutil.rmtree(root / "val" / IDS[0]),
        ["same class folders", f"only {{}}/train has {IDS[0]}"],
    ),
    "other classes": (
        lambda root: (root / "val" / IDS[1]).rename(root / "val" / "n00000011"),
        [f"only {{}}/train has {IDS[1]}", "only {}/val has n00000011"],
    ),
    "a folder that is no class": (
        lambda root: (root / "train" / "new").mkdir(),
        ["only {}/train has new"],
    ),
    "names that sort into other labels": (renamed, ["not named by WordNet ids n########: ape", "labels"]),
    "a class too few": (
        lambda root: [shutil.rmtree(root / split / IDS[0]) for split in ("train", "val")],
        ["2 classes and 6 + 4 images, not 3 classes and 9 + 6"],
    ),
    "a training image too few": (
        lambda root: next((root / "train" / IDS[1]).iterdir()).unlink(),
        ["3 classes and 8 + 6 images, not 3 classes and 9 + 6", f"{{}}/train/{IDS[1]} has 2"],
    ),
    "an image in another class": (
        moved,
        ["3 classes and 9 + 6 images", "2 of each class", f"{{}}/val/{IDS[1]} has 3"],
    ),
    "a class without images": (
        lambda root: [file.rename(f"{file}.gif") for file in (root / "val" / IDS[1]).iterdir()],
        ["{}/val has no images (.jpg, .jpeg, .png", f"in 1 of 3 class folders: {IDS[1]}"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_tree_is_told_with_the_place(root, wrong):
    make, told = WRONG[wrong]
    make(root)
    message = refused(imagenet, root)
    for words in told:
        assert words.format(root) in message
    assert message.endswith("see docs/reproducing.md#imagenet")


def test_a_tree_of_ones_own_may_have_any_names_and_numbers(root):
    moved(root)
    renamed(root)
    train, val = read_tree(root)
    assert train.classes == val.classes == ("ape", IDS[0], IDS[2])
    assert (len(train), len(val)) == (9, 6)


# ---- digest


def test_digest_names_the_content(root, tmp_path):
    listings = read_tree(root)
    before, path = digest(*listings), listings[0].path(4)
    assert re.fullmatch("[0-9a-f]{16}", before)
    os.utime(path, (1, 1))
    assert digest(*read_tree(root)) == before
    assert digest(*read_tree(shutil.copytree(root, tmp_path / "copy"))) == before
    assert digest(*reversed(listings)) != before
    # The width of the array of names is that of the longest.
    assert digest(replace(listings[0], names=listings[0].names.astype("S99")), listings[1]) == before
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    longer = digest(*read_tree(root))
    path.write_bytes(content)
    path.rename(path.with_name("other.JPEG"))
    assert len({before, longer, digest(*read_tree(root))}) == 3


# ---- a sample is decoded


def test_the_sample_is_spread_evenly_and_has_the_smallest_files(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        tree, "look_at", lambda path, *_: (seen.append(int(path.name)), (np.arange(2) * len(seen), "L"))[1]
    )
    sizes = np.full(1000, 500)
    sizes[[3, 501, 502, 503, 999]] = 400
    listed = tree.Listing(tmp_path, np.arange(1000).astype("S3"), np.zeros(1000, np.int64), sizes, ("a",))
    try_images(listed, 8, sample=100)
    assert len(seen) == len({*seen}) == 105
    assert {3, 501, 502, 503, 999} <= {*seen}
    assert {number // 10 for number in seen} == {*range(100)}


def test_what_the_images_are_is_told(root):
    folder = root / "train" / IDS[0]
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(folder / "grey.png")
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(folder / "deep.png")
    train, val = read_tree(root)
    assert try_images(train, 8) == "9 RGB, 1 I;16, 1 L, pixels 0 to 255"
    assert try_images(val, 8, channels=1).startswith("6 RGB, pixels ")


DAMAGED = {
    "cut": (lambda content: content[: len(content) // 2], ""),
    "text": (lambda content: b"hello", ""),
    "empty": (lambda content: b"", ""),
    "zeros at the end": (lambda content: content[:-40] + bytes(200), "filled with zeros"),
    "pointer": (lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
    "gone": (None, "No such file"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_image_is_named(root, damage):
    listing, _ = read_tree(root)
    path, (change, told) = listing.path(4), DAMAGED[damage]
    content = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(content))
    message = refused(try_images, listing, 8)
    assert message.startswith(f"{path} is not a readable image: ")
    assert told in message


@pytest.mark.parametrize("value", [0, 255, 100])
def test_images_that_are_all_the_same_are_refused(root, value):
    for path in (root / "train").rglob("*.JPEG"):
        Image.new("RGB", (20, 10), (value,) * 3).save(path)
    train, val = read_tree(root)
    assert f"all 9 images that were tried look the same, with pixels from {value} to {value}" in refused(
        try_images, train, 8
    )
    try_images(val, 8)
