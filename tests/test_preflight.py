"""The listing of a large image tree, and the message for each way in which one can be wrong."""

import io
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from pursuhint_lib.data import DataError, preflight
from pursuhint_lib.data.preflight import (
    Listing,
    check_readable,
    check_structure,
    digest,
    find_tree,
    list_split,
)

IDS = ("n00000002", "n00000010", "n00000300")
COUNTS, CLASSES = (9, 6), 3


def jpeg(number: int = 0, side: int = 48, **options) -> bytes:
    """A picture which, being noise, has a long file."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path) -> Path:
    """Three classes with three training and two validation images each; written out of order."""
    root = tmp_path / "pictures"
    for split, count in (("train", 3), ("val", 2)):
        for name in reversed(IDS):
            (root / split / name).mkdir(parents=True)
            for number in (11, 2, 103)[:count]:
                (root / split / name / f"{name}_{number}.JPEG").write_bytes(jpeg(number, 16))
    return root


def check(root: Path):
    return check_structure(root, COUNTS, CLASSES)


def refused(*texts: str, call=None, root: Path | None = None) -> None:
    """The call raises a DataError of one line that has all texts."""
    with pytest.raises(DataError) as caught:
        call() if call else check(root)
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert text in message, message


# ---- listing


def test_good_tree_is_listed_in_the_order_of_torchvision(tree):
    (tree / "train" / IDS[1] / "UPPER.PnG").write_bytes(b"1")
    (tree / "train" / IDS[1] / "Ünder.webp").write_bytes(b"22")
    (tree / "train" / IDS[1] / "notes.txt").write_text("not an image")
    listing = list_split(tree / "train")
    theirs = ImageFolder(tree / "train")
    assert [(str(listing.path(i)), int(listing.labels[i])) for i in range(len(listing))] == theirs.samples
    assert listing.classes == tuple(theirs.classes) == IDS
    assert listing.sizes.tolist() == [os.path.getsize(path) for path, _ in theirs.samples]
    assert listing.names.dtype.kind == "S"
    assert listing.labels.dtype == listing.sizes.dtype == np.int64
    assert listing.folder == tree / "train"


def test_class_names_of_different_length_sort_as_folders_do(tmp_path):
    for name in ("a", "a-b", "a.b"):  # as paths, "a-b/" would come before "a/"
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    assert list_split(tmp_path).names.tolist() == [b"a/x.png", b"a-b/x.png", b"a.b/x.png"]


def test_classes_are_labelled_in_the_order_given(tree):
    listing = list_split(tree / "train", [IDS[2], IDS[0]])
    assert listing.labels.tolist() == [0] * 3 + [1] * 3
    assert [name[:9].decode() for name in listing.names.tolist()] == [IDS[2]] * 3 + [IDS[0]] * 3


def test_hidden_files_and_links(tree):
    (tree / "train" / IDS[0] / f"._{IDS[0]}_2.JPEG").write_bytes(b"of macOS")
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    shutil.move(tree / "val", tree.parent / "elsewhere")
    (tree / "val").symlink_to(tree.parent / "elsewhere")
    train, val = check(tree)
    assert (len(train), len(val)) == COUNTS
    (tree / "train" / IDS[0] / "gone.jpg").symlink_to(tree / "nowhere.jpg")
    refused("gone.jpg cannot be read", root=tree)


def test_listing_of_what_is_not_there(tree):
    refused(f"{tree / 'test'} cannot be read", call=lambda: list_split(tree / "test"))
    refused(f"{tree / 'val' / 'ape'} cannot be read", call=lambda: list_split(tree / "val", ["ape"]))
    (tree / "none").mkdir()
    refused("has no class folders; expected", call=lambda: list_split(tree / "none"))


# ---- finding the tree


def test_tree_is_found_in_both_places(tree):
    assert find_tree(tree) == tree
    shutil.copytree(tree, tree / "imagenet")
    assert find_tree(tree) == tree / "imagenet"


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ((), "is empty"),
        (("cifar10/", "mnist/", "a.txt", "b.txt"), "has neither, only cifar10, mnist, a.txt and 1 more"),
        (("train/",), "has train/ but no val/"),
        (("val/",), "has val/ but no train/"),
        (("train/", "test/"), "has train/ and test/ but no val/: rename test/"),
        (
            ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
            "is not unpacked yet, it has ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar: ",
        ),
        (
            ("train/", "ILSVRC2012_img_val.tar"),
            "is not unpacked yet, it has ILSVRC2012_img_val.tar (beside train/): unpack",
        ),
        (("imagenet-object-localization-challenge.zip",), "is not unpacked yet"),
        (("imagenet.TAR.GZ",), f"is not unpacked yet, it has imagenet.TAR.GZ: {preflight.UNPACK}"),
        (("n00000002.tar", "n00000010.tar"), "is not unpacked yet, it has n00000002.tar, n00000010.tar"),
        (("n00000002/", "n00000010/"), "has 2 class folders (n00000002, n00000010) outside train/ and val/"),
    ],
)
def test_what_is_found_in_place_of_a_tree(tmp_path, entries, text):
    root = tmp_path / "imagenet"
    root.mkdir()
    for entry in entries:
        (root / entry).mkdir() if entry.endswith("/") else (root / entry).touch()
    refused(f"{root} {text}", f"{root / 'imagenet'} does not exist", call=lambda: find_tree(root))
    refused(f"{root} {text}", f"{tmp_path} has neither, only imagenet", call=lambda: find_tree(tmp_path))


@pytest.mark.parametrize("pointed_at", [".", "ILSVRC", "ILSVRC/Data"])
def test_layout_of_kaggle(tree, tmp_path, pointed_at):
    inner = tmp_path / "imagenet" / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(tree, inner)
    refused(
        f"has Kaggle's layout: point at {inner}", call=lambda: find_tree(tmp_path / "imagenet" / pointed_at)
    )
    assert find_tree(inner) == inner


def test_no_folder_at_all(tmp_path):
    refused(f"{tmp_path / 'x'} does not exist", call=lambda: find_tree(tmp_path / "x"))
    (tmp_path / "x").touch()
    refused(f"{tmp_path / 'x'} is not a folder", root=tmp_path / "x")


# ---- structure


def test_good_tree_passes(tree):
    for counts, classes in ((COUNTS, CLASSES), (None, None), (None, CLASSES), (COUNTS, None)):
        train, val = check_structure(tree, counts, classes)
        assert (len(train), len(val)) == COUNTS
        assert train.classes == val.classes == IDS


def test_own_tree_may_have_any_names_and_numbers(tree):
    for split in ("train", "val"):
        (tree / split / IDS[0]).rename(tree / split / "ape")
    (tree / "val" / "ape" / f"{IDS[0]}_2.JPEG").unlink()
    train, val = check_structure(tree, None, None)
    assert train.classes == val.classes == ("ape", *IDS[1:])
    assert (len(train), len(val)) == (9, 5)


def flatten(folder: Path, names=IDS) -> None:
    for name in names:
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()


def test_flat_validation_folder(tree):
    flatten(tree / "val")
    refused(
        "val has all its 6 images in one flat folder, first n00000002_11.JPEG",
        "val/<class>/, with valprep.sh",
        root=tree,
    )


def test_validation_folder_that_was_sorted_in_part(tree):
    flatten(tree / "val", IDS[1:])
    refused(
        "val has 4 of its images still outside class folders, first n00000010_11.JPEG",
        "valprep.sh",
        root=tree,
    )


def test_flat_training_folder(tree):
    flatten(tree / "train", IDS[:1])
    refused(
        "train has 3 images outside class folders, first n00000002_103.JPEG; move each into train/<class>/",
        root=tree,
    )


@pytest.mark.parametrize("inner", ["train", "ILSVRC2012_img_train"])
def test_split_nested_twice(tree, inner):
    shutil.move(tree / "train", tree / "moved")
    shutil.move(tree / "moved", tree / "train" / inner)
    refused(
        f"train holds only a folder {inner}/, which has the folders {', '.join(IDS)}: move these one level up",
        root=tree,
    )


def test_class_nested_twice(tree):
    shutil.move(tree / "train" / IDS[1], tree / "moved")
    shutil.move(tree / "moved", tree / "train" / IDS[1] / "images")
    refused(
        "1 of 3 class folders without images",
        f"first {tree / 'train' / IDS[1]}; it has a folder images/",
        root=tree,
    )


@pytest.mark.parametrize("names", [("0", "1", "2"), ("ape", "bee", "zebra")])
def test_names_that_sort_into_other_labels(tree, names):
    for split in ("train", "val"):
        for old, new in zip(IDS, names, strict=True):
            (tree / split / old).rename(tree / split / new)
    refused(
        f"not named by WordNet ids n########: {', '.join(names)}; their sorted order gives other labels",
        root=tree,
    )
    check_structure(tree, COUNTS, None)


def test_stray_folders_are_named(tree):
    (tree / "train" / "__MACOSX").mkdir()
    refused("train has folders that are not classes n########: __MACOSX; remove", root=tree)


def test_class_folders_that_differ(tree):
    for number in range(4):
        (tree / "train" / f"n1000000{number}").mkdir()
    shutil.rmtree(tree / "train" / IDS[0])
    lacks = "train/ lacks 1: n00000002; val/ lacks 4: n10000000, n10000001, n10000002 and 1 more"
    refused("must have the same class folders, but " + lacks, call=lambda: check_structure(tree, None, None))
    shutil.rmtree(tree / "val" / IDS[0])
    refused("same class folders, but val/ lacks 4: ", call=lambda: check_structure(tree, None, None))


def test_equally_many_other_classes_differ(tree):
    (tree / "val" / IDS[1]).rename(tree / "val" / "n00000011")
    refused("train/ lacks 1: n00000011; val/ lacks 1: n00000010", root=tree)


def test_half_extracted_archive(tree):
    shutil.rmtree(tree / "train" / IDS[1])
    refused("train has 2 of 3 class folders; it was unpacked or copied only in part", root=tree)
    for name in IDS[1:]:
        (tree / "train" / f"{name}.tar").touch()
    refused(
        "train has 2 of 3 class folders; 2 are still packed, first n00000010.tar: unpack each .tar", root=tree
    )


def test_archives_only(tree):
    shutil.rmtree(tree / "train")
    (tree / "train").mkdir()
    refused("train has 0 of 3 class folders", root=tree)
    refused("train has no class folders; expected", call=lambda: check_structure(tree, None, None))
    for name in IDS:
        (tree / "train" / f"{name}.tar").touch()
    refused("train has 0 of 3 class folders; 3 are still packed, first n00000002.tar", root=tree)


def test_too_many_classes(tree):
    (tree / "train" / "n00000500").mkdir()
    refused("train has 4 class folders instead of 3; not in the other split: n00000500", root=tree)
    (tree / "val" / "n00000500").mkdir()
    refused("train has 4 class folders instead of 3; the other split has them too", root=tree)
    (tree / "train" / "n00000500").rmdir()
    refused("val has 4 class folders instead of 3; not in the other split: n00000500", root=tree)


def test_numbers_of_training_images(tree):
    lost = tree / "train" / IDS[1] / f"{IDS[1]}_2.JPEG"
    kept = lost.rename(tree / "kept")
    refused("train has 8 images instead of 9; the class with the fewest, n00000010, has 2", root=tree)
    kept.rename(lost)
    shutil.copy(lost, lost.with_name("copy.JPEG"))
    refused("train has 10 images instead of 9; the class with the most, n00000010, has 4", root=tree)


def test_numbers_of_validation_images(tree):
    moved = tree / "val" / IDS[2] / f"{IDS[2]}_2.JPEG"
    moved.rename(tree / "val" / IDS[1] / moved.name)
    refused(
        "val has 6 images, but some in the wrong class; every class must have 2, but n00000010 has 3 (2 "
        "classes are wrong)",
        root=tree,
    )
    (tree / "val" / IDS[1] / moved.name).unlink()
    refused("val has 5 images instead of 6; every class must have 2, but n00000300 has 1", root=tree)


def test_empty_class_folders(tree):
    for name in IDS[1:]:
        shutil.rmtree(tree / "val" / name)
        (tree / "val" / name).mkdir()
    refused(f"val has 2 of 3 class folders without images, first {tree / 'val' / IDS[1]}; unpack", root=tree)


def test_files_of_no_bytes(tree):
    empty = [tree / "train" / name / f"{name}_2.JPEG" for name in IDS[1:]]
    for path in empty:
        path.write_bytes(b"")
    refused(f"train has 0 bytes in 2 of 9 images, first {empty[0]}", root=tree)


# ---- digest


def test_digest_names_the_content(tree, tmp_path):
    listings = check(tree)
    before = digest(*listings)
    assert re.fullmatch("[0-9a-f]{16}", before)
    path = listings[0].path(4)
    os.utime(path, (1, 1))
    assert digest(*check(tree)) == before
    assert digest(*check(shutil.copytree(tree, tmp_path / "copy"))) == before
    assert digest(listings[1], listings[0]) != before
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    longer = digest(*check(tree))
    path.write_bytes(content)
    assert digest(*check(tree)) == before
    path.rename(path.with_name("other.JPEG"))
    assert len({before, longer, digest(*check(tree))}) == 3


def test_digest_does_not_depend_on_the_width_of_the_array(tree):
    train, val = check(tree)
    wide = replace(train, names=train.names.astype("S99"))
    assert digest(wide, val) == digest(train, val)


# ---- readable


PICTURE = jpeg(7)
DAMAGE = {
    "cut short": (PICTURE[: len(PICTURE) // 2], "image file is truncated"),
    "size flipped": (PICTURE.replace(b"\x08\0\x30\0\x30", b"\x08\xff\x30\xff\x30"), "Image size"),
    "zeros only": (bytes(len(PICTURE)), "not an image"),
    "zeros from the middle": (PICTURE[:1500] + bytes(20_000), "the end of the file is filled with zeros"),
    "first bit flipped": (bytes([PICTURE[0] ^ 128]) + PICTURE[1:], "not an image"),
    "marker flipped": (PICTURE.replace(b"\xff\xc0", b"\xff\x40"), ""),
    "web page": (b"<html>404</html>" * 99, "not an image"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_image_is_named(tree, kind):
    content, reason = DAMAGE[kind]
    path = tree / "train" / IDS[1] / "damaged.JPEG"
    path.write_bytes(content)
    listing = list_split(tree / "train")
    check_readable(list_split(tree / "val"))
    refused(
        f"{path} cannot be decoded: {reason}",
        "1 of 10 images that were tried",
        call=lambda: check_readable(listing),
    )


def test_image_deleted_since_it_was_listed(tree):
    listing = list_split(tree / "train")
    path = listing.path(3)
    path.unlink()
    refused(f"{path} cannot be decoded: ", "No such file", call=lambda: check_readable(listing))


def test_odd_but_readable_images_pass(tree):
    """Damaged metadata, transparency in bytes, CMYK, and padding after the end are no reason to refuse a
    tree.
    """
    folder = tree / "train" / IDS[0]
    (folder / "exif.JPEG").write_bytes(jpeg(1, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x1a\x01\x05\0"))
    palette = Image.new("P", (8, 8))
    palette.save(folder / "palette.png", transparency=bytes(range(9)))
    Image.new("CMYK", (8, 8)).save(folder / "cmyk.jpg")
    (folder / "padded.JPEG").write_bytes(jpeg(1) + bytes(999))
    check_readable(list_split(tree / "train"))


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the images that are decoded; none of them is damaged."""
    paths = []
    monkeypatch.setattr(preflight, "_why_unreadable", lambda path: paths.append(path.name))
    return paths


@pytest.mark.parametrize("seed", range(5))
def test_sample_is_spread_evenly_and_has_the_smallest_files(decoded, seed):
    sizes = np.full(1000, 500)
    sizes[[3, 500, 501, 502, 999]] = 400
    names = np.array([f"a/{number:03}" for number in range(1000)], dtype="S")
    listing = Listing(Path("x"), names, np.zeros(1000, np.int64), sizes, ("a",))
    check_readable(listing, 100, seed)
    found = sorted(map(int, decoded))
    assert {3, 500, 501, 502, 999} <= {*found}
    assert {number // 10 for number in found} == {*range(100)}
    assert 100 <= len(found) == len({*found}) <= 105
    decoded.clear()
    check_readable(listing, 100, seed)
    assert sorted(map(int, decoded)) == found
    decoded.clear()
    check_readable(listing, 100, seed + 1)
    assert sorted(map(int, decoded)) != found


def test_small_tree_is_decoded_as_a_whole_and_once(decoded, tree):
    listing = list_split(tree / "train")
    check_readable(listing)
    assert sorted(decoded) == sorted(listing.path(i).name for i in range(9))


def test_number_of_unreadable_images_is_told(tree):
    listing = list_split(tree / "train")
    for index in (4, 7):
        listing.path(index).write_bytes(PICTURE[:99])
    refused(
        f"{listing.path(4)} cannot be decoded",
        "2 of 9 images that were tried",
        call=lambda: check_readable(listing),
    )
