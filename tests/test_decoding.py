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


@pytest.fixture(params=["made", pytest.param("real", marks=needs_sample)])
def files(request, tmp_path):
    """Images of several shapes: made here, or every twelfth of a few real ones."""
    if request.param == "real":
        with zipfile.ZipFile(SAMPLE) as archive:
            return [tmp_path / archive.extract(name, tmp_path) for name in sorted(archive.namelist())[::12]]
    sizes = [(500, 375), (333, 500), (256, 256), (100, 80), (641, 479), (1200, 257), (40, 600)]
    for width, height in sizes:
        picture(width, height).filter(ImageFilter.SHARPEN).save(tmp_path / f"{width}.JPEG")
    return sorted(tmp_path.iterdir())


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
    assert {type(value) for value in decoding.crop_box(*size, draws)} == {int}


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (1, 1), (1, 300)])
def test_where_no_crop_fits_it_is_the_central_one(size):
    """No crop with an allowed area and ratio fits into such shapes."""
    width, height = size
    torch.manual_seed(0)
    top, left, h, w = transforms.RandomResizedCrop.get_params(
        torch.empty(3, height, width), (0.9, 1.0), (3 / 4, 4 / 3)
    )
    assert decoding.crop_box(width, height, np.random.default_rng(0)) == (left, top, w, h)


# ---- training


def test_training_pixels_are_torchvisions_resized_crop(files):
    for seed, path in enumerate(3 * files):
        check_near(
            decoding.train_pixels(path, 96, np.random.default_rng(seed)),
            torchvision_training(path, 96, np.random.default_rng(seed)),
        )


def test_pixels_are_the_same_without_torchvisions_operator(file, monkeypatch):
    assert decoding.jpeg_decoder(), "this torchvision decodes JPEGs"
    fast = [decoding.train_pixels(file, 64, np.random.default_rng(seed)) for seed in range(4)]
    monkeypatch.setattr(decoding, "jpeg_decoder", lambda: None)
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


def test_evaluation_pixels_are_exactly_torchvisions(files):
    for path in files:
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


def twelve_bit_pgm(path, values):
    path.write_bytes(b"P5 120 90 4095\n" + (values >> 4).astype(">u2").tobytes())


DEEP = {
    "16-bit PNG": lambda path, values: Image.fromarray(values).save(path, "PNG"),
    "16-bit TIFF": lambda path, values: Image.fromarray(values).save(path, "TIFF"),
    "big-endian TIFF": lambda path, values: Image.fromarray(values.astype(">u2")).save(path, "TIFF"),
    "16-bit PGM": lambda path, values: Image.fromarray(values).save(path, "PPM"),
    "12-bit PGM": twelve_bit_pgm,
}
READERS = {
    "training": lambda path: decoding.train_pixels(path, 64, np.random.default_rng(0)),
    "evaluation": lambda path: decoding.test_pixels(path, 64),
    "in memory": lambda path: decoding.centre(path, 32, 40),
    "in memory, grey": lambda path: decoding.centre(path, 32, 40, channels=1),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", DEEP)
def test_deeper_images_keep_their_upper_eight_bits_whoever_reads_them(tmp_path, kind, reader):
    grey = picture(120, 90).convert("L")
    grey.save(tmp_path / "eight.png")
    DEEP[kind](tmp_path / "deep", (np.asarray(grey).astype(np.uint16) << 8) + 128)
    found, expected = (READERS[reader](tmp_path / name) for name in ("deep", "eight.png"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("values", [np.float32, np.int32])
def test_values_without_a_known_range_are_refused(tmp_path, values, reader):
    Image.fromarray(np.ones((90, 120), values)).save(tmp_path / "odd.tif")
    with pytest.raises(DataError, match="odd.tif is not a readable image: .*save it with one of these"):
        READERS[reader](tmp_path / "odd.tif")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_in_memory_any_colours_become_those_of_the_data_set(tmp_path, mode, channels):
    picture(60, 40).convert(mode).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        expected = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(40, 60, channels)
    np.testing.assert_array_equal(decoding.centre(tmp_path / "x.tif", 40, 40, channels), expected[:, 10:50])


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


def encoded(form):
    content = io.BytesIO()
    picture(120, 90).save(content, form)
    return content.getvalue()


JPEG, PNG = encoded("JPEG"), encoded("PNG")
DAMAGED = {
    "empty": b"",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "text": b"<html>404\nnot found</html>",
    "half a JPEG": JPEG[: len(JPEG) // 2],
    "a JPEG without its end": JPEG[:-2],
    "the start of a JPEG": JPEG[:3],
    "half a PNG": PNG[: len(PNG) // 2],
    "a PNG with damage": PNG[:60] + bytes(200) + PNG[260:],
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    path = tmp_path / "n0001.JPEG"
    path.write_bytes(DAMAGED[damage])
    check_refused(path)


def test_a_missing_file_a_folder_and_an_image_beyond_pillows_limit_are_refused(tmp_path, monkeypatch):
    check_refused(tmp_path / "missing.JPEG")
    (tmp_path / "folder.JPEG").mkdir()
    check_refused(tmp_path / "folder.JPEG")
    (tmp_path / "large.png").write_bytes(PNG)
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
