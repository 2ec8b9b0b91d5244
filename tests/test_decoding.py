"""Images are decoded, cropped and resized as torchvision does it, whatever kind of file they are; damaged
files are named.
"""

import io
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.stats import ks_2samp
from torchvision import transforms
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import functional

from pursuhint_lib.data import DataError, decoding
from pursuhint_lib.paths import ROOT

SAMPLE = ROOT.parent / "shared" / "data" / "imagenet_sample" / "images.zip"
needs_sample = pytest.mark.skipif(
    not SAMPLE.is_file(), reason=f"{SAMPLE} (a few images of ImageNet) is not there"
)
DRAWS = 4000
# The evaluation preset of torchvision's pretrained networks, up to the point where it leaves uint8.
PRESET = transforms.Compose([transforms.Resize(256, antialias=True), transforms.CenterCrop(224)])


def picture(width=500, height=375, seed=0):
    """Smooth colours with some grain."""
    draws = np.random.default_rng(seed)
    coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = draws.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "picture.JPEG"
    picture().save(path, quality=92)
    return path


@pytest.fixture
def sample(tmp_path):
    """A few real images: every twelfth."""
    with zipfile.ZipFile(SAMPLE) as archive:
        return [tmp_path / archive.extract(name, tmp_path) for name in sorted(archive.namelist())[::12]]


def torchvision_training(path, side, draws):
    """torchvision's crop, resize and mirroring, of the crop that such draws give."""
    image = pil_loader(path)
    left, top, width, height = decoding.crop_box(*image.size, draws)
    image = functional.resized_crop(image, top, left, height, width, [side, side])
    return np.asarray(functional.hflip(image) if draws.random() < 0.5 else image)


def check_near(ours, theirs):
    """Torch keeps the weights of a resize in 16 bits and Pillow in 32: some values are a level apart, in
    either direction.
    """
    difference = ours.astype(int) - theirs
    assert abs(difference).max() <= 2
    assert abs(difference).mean() < 0.4
    assert abs(difference.mean()) < 0.05


# ---- crops


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (1000, 600), (20, 30), (900, 300)])
def test_crops_have_the_distribution_of_torchvisions(size):
    width, height = size
    draws = np.random.default_rng(1)
    ours = np.array([decoding.crop_box(width, height, draws) for _ in range(DRAWS)])
    torch.manual_seed(2)
    blank = torch.empty(3, height, width)
    theirs = [
        transforms.RandomResizedCrop.get_params(blank, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(DRAWS)
    ]
    theirs = np.array([(left, top, w, h) for top, left, h, w in theirs])
    for what in (
        lambda c: c[:, 2] * c[:, 3],
        lambda c: c[:, 2] / c[:, 3],
        lambda c: 2 * c[:, 0] + c[:, 2],
        lambda c: 2 * c[:, 1] + c[:, 3],
        lambda c: c[:, 0],
        lambda c: c[:, 1],
    ):
        assert ks_2samp(what(ours), what(theirs)).pvalue > 0.001
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2]).max() == width
    assert (ours[:, 1] + ours[:, 3]).max() == height


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (1, 1), (1, 300)])
def test_where_no_crop_fits_it_is_the_central_one(size):
    """No crop with an allowed area and ratio fits into such shapes."""
    width, height = size
    torch.manual_seed(0)
    top, left, h, w = transforms.RandomResizedCrop.get_params(
        torch.empty(3, height, width), (0.9, 1.0), (3 / 4, 4 / 3)
    )
    assert decoding.crop_box(width, height, np.random.default_rng(0)) == (left, top, w, h)


def test_crops_are_whole_numbers_of_python():
    assert {type(value) for value in decoding.crop_box(500, 375, np.random.default_rng(0))} == {int}


# ---- training


def test_training_pixels_are_torchvisions_resized_crop(file):
    for seed in range(30):
        check_near(
            decoding.train_pixels(file, 96, np.random.default_rng(seed)),
            torchvision_training(file, 96, np.random.default_rng(seed)),
        )


@needs_sample
def test_training_pixels_of_real_images_are_torchvisions(sample):
    for seed, path in enumerate(sample):
        check_near(
            decoding.train_pixels(path, 224, np.random.default_rng(seed)),
            torchvision_training(path, 224, np.random.default_rng(seed)),
        )


def test_pixels_are_the_same_without_torchvisions_operator(file, monkeypatch):
    assert decoding.DECODE_JPEG, "this torchvision decodes JPEGs"
    fast = [decoding.train_pixels(file, 64, np.random.default_rng(seed)) for seed in range(4)]
    monkeypatch.setattr(decoding, "DECODE_JPEG", None)
    slow = [decoding.train_pixels(file, 64, np.random.default_rng(seed)) for seed in range(4)]
    np.testing.assert_array_equal(fast, slow)


def test_pixels_depend_on_the_draws_alone(file):
    first, again, other = (
        decoding.train_pixels(file, 64, np.random.default_rng(seed)) for seed in ((5, 1), (5, 1), (5, 2))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_half_of_the_images_are_mirrored(tmp_path):
    ramp = np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], 128, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "ramp.JPEG")
    draws = np.random.default_rng(0)
    mirrored = 0
    for _ in range(400):
        pixels = decoding.train_pixels(tmp_path / "ramp.JPEG", 16, draws).astype(int)
        mirrored += pixels[:, 0].sum() > pixels[:, -1].sum()
    # Four standard deviations.
    assert abs(mirrored - 200) < 40


# ---- evaluation


@pytest.mark.parametrize(
    "size", [(500, 375), (333, 500), (256, 256), (100, 80), (641, 479), (1200, 257), (40, 600)]
)
def test_evaluation_pixels_are_exactly_torchvisions(tmp_path, size):
    path = tmp_path / "picture.JPEG"
    picture(*size).filter(ImageFilter.SHARPEN).save(path)
    np.testing.assert_array_equal(decoding.test_pixels(path, 224), np.asarray(PRESET(pil_loader(path))))


@needs_sample
def test_evaluation_pixels_of_real_images_are_exactly_torchvisions(sample):
    for path in sample:
        np.testing.assert_array_equal(decoding.test_pixels(path, 224), np.asarray(PRESET(pil_loader(path))))


@pytest.mark.parametrize("side", [1, 32, 160, 225])
def test_the_shorter_side_is_scaled_in_proportion(file, side):
    preset = transforms.Compose([transforms.Resize(round(side * 256 / 224)), transforms.CenterCrop(side)])
    np.testing.assert_array_equal(decoding.test_pixels(file, side), np.asarray(preset(pil_loader(file))))


# ---- kinds of files

KINDS = {
    "grey JPEG": ("L", "JPEG"),
    "CMYK JPEG": ("CMYK", "JPEG"),
    "PNG": ("RGB", "PNG"),
    "transparent PNG": ("RGBA", "PNG"),
    "grey transparent PNG": ("LA", "PNG"),
    "black and white PNG": ("1", "PNG"),
    "GIF": ("P", "GIF"),
    "progressive JPEG": ("RGB", "JPEG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_image_becomes_rgb(tmp_path, kind):
    """Files have the ending .JPEG, as ImageNet's have, whatever they are."""
    mode, form = KINDS[kind]
    path = tmp_path / "odd.JPEG"
    picture(120, 90).convert(mode).save(
        path, form, **({"progressive": True} if "progressive" in kind else {})
    )
    for seed in range(4):
        ours = decoding.train_pixels(path, 48, np.random.default_rng(seed))
        assert (ours.dtype, ours.shape, ours.flags.c_contiguous, ours.flags.writeable) == (
            np.uint8,
            (48, 48, 3),
            True,
            True,
        )
        check_near(ours, torchvision_training(path, 48, np.random.default_rng(seed)))
    ours = decoding.test_pixels(path, 224)
    assert (ours.dtype, ours.shape, ours.flags.writeable) == (np.uint8, (224, 224, 3), True)
    np.testing.assert_array_equal(ours, np.asarray(PRESET(pil_loader(path))))


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    grey = picture(120, 90).convert("L")
    grey.save(tmp_path / "eight.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) << 8).save(tmp_path / "sixteen.png")
    for pixels in (
        lambda path: decoding.test_pixels(path, 64),
        lambda path: decoding.train_pixels(path, 64, np.random.default_rng(0)),
    ):
        np.testing.assert_array_equal(pixels(tmp_path / "sixteen.png"), pixels(tmp_path / "eight.png"))


def test_odd_metadata_do_not_warn(tmp_path, monkeypatch):
    picture(120, 90).convert("P").save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x09\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f"
    picture(120, 90).save(tmp_path / "exif.JPEG", exif=exif)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    for path, what in (
        (tmp_path / "palette.png", "Palette images with Transparency"),
        (tmp_path / "exif.JPEG", "Truncated File Read"),
    ):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            pil_loader(path)
            assert any(what in str(warning.message) for warning in seen)
            seen.clear()
            decoding.test_pixels(path, 32)
            decoding.train_pixels(path, 32, np.random.default_rng(0))
            assert not seen


# ---- damaged files


def jpeg(**options):
    content = io.BytesIO()
    picture(120, 90).save(content, "JPEG", **options)
    return content.getvalue()


def png():
    content = io.BytesIO()
    picture(120, 90).save(content, "PNG")
    return content.getvalue()


DAMAGED = {
    "empty": lambda: b"",
    "text": lambda: b"<html>404\nnot found</html>",
    "half a JPEG": lambda: jpeg()[: len(jpeg()) // 2],
    "a JPEG without its end": lambda: jpeg()[:-2],
    "the start of a JPEG": lambda: jpeg()[:3],
    "half a PNG": lambda: png()[: len(png()) // 2],
    "a PNG with damage": lambda: png()[:60] + bytes(200) + png()[260:],
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    path = tmp_path / "n0001.JPEG"
    path.write_bytes(DAMAGED[damage]())
    check_refused(path)


def test_a_missing_file_a_folder_and_an_image_beyond_pillows_limit_are_refused(tmp_path, monkeypatch):
    check_refused(tmp_path / "missing.JPEG")
    (tmp_path / "folder.JPEG").mkdir()
    check_refused(tmp_path / "folder.JPEG")
    (tmp_path / "large.png").write_bytes(png())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    check_refused(tmp_path / "large.png")


def check_refused(path):
    for use in (
        lambda: decoding.train_pixels(path, 32, np.random.default_rng(0)),
        lambda: decoding.test_pixels(path, 32),
    ):
        with pytest.raises(DataError) as error:
            use()
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
