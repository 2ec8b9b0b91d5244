"""Figures and tables are the same bytes on every kind of processor: noise in last bits changes nothing."""

import io
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from figures import FIGURES, panel
from matplotlib import transforms
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pursuhint_lib import plots
from pursuhint_lib.digits import settled
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.plots.saving import _extent, on_grid, png, svg
from pursuhint_lib.plots.style import new_figure
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish.page import Page

# A value whose next digit is a 5, on whose side a last bit decides.
TIES = pd.DataFrame({"arm": ["none", "all"], "mean": [90.125, 0.1 + 0.2], "p": [1e-9 / 3, 0.0500005], "n": 3})
# Four units in the last place, and what a few thousand roundings may add up to.
SIZES = (2**-50, 1e-12)


class Noise:
    """Numbers times 1 + ε, |ε| ≤ ``size``: wherever a number stands in the arguments of a figure."""

    def __init__(self, size: float):
        self.size, self.generator = size, np.random.default_rng(0)

    def __call__(self, value):
        if isinstance(value, float | np.ndarray) and np.asarray(value).dtype.kind == "f":
            noisy = value * (1 + self.size * self.generator.integers(-4, 5, np.shape(value)) / 4)
            return noisy if isinstance(value, np.ndarray) else float(noisy)
        if isinstance(value, pd.DataFrame):
            return value.map(self)
        if isinstance(value, dict):
            return {key: self(entry) for key, entry in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self, value))
        if is_dataclass(value):
            return replace(value, **self({field.name: getattr(value, field.name) for field in fields(value)}))
        return value

    def matrix(self, transform: transforms.CompositeAffine2D) -> np.ndarray:
        """The matrix of a chain of transformations, as another library for matrix products would give it."""
        if transform._invalid:
            transform._mtx = self(np.dot(transform._b.get_matrix(), transform._a.get_matrix()))
            transform._inverted, transform._invalid = None, 0
        return transform._mtx


def drawn(name: str) -> tuple[bytes, bytes]:
    figure = FIGURES[name]()
    return svg(figure), png(figure, 100)


@pytest.mark.parametrize("name", FIGURES)
def test_noise_in_what_is_drawn_and_in_the_layout_changes_no_byte(name, monkeypatch):
    plain, function = drawn(name), getattr(plots, name)
    for size in SIZES:
        noise = Noise(size)
        monkeypatch.setattr(
            plots, name, lambda *given, noise=noise, **named: function(*noise(given), **noise(named))
        )
        monkeypatch.setattr(
            transforms.CompositeAffine2D, "get_matrix", lambda self, noise=noise: noise.matrix(self)
        )
        assert drawn(name) == plain


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setenv("PURSUHINT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PURSUHINT_WORK", str(tmp_path / "work"))
    return Page(load_profile("smoke"), "05_results")


@pytest.mark.parametrize("size", SIZES)
def test_noise_in_a_table_changes_no_byte(size, page):
    noise, written = Noise(size), []
    for table in (TIES, *(noise(TIES) for _ in range(20))):
        page.table(table, "ties", "Ties.")
        written.append([file.read_bytes() for file in sorted(StudyPaths("smoke").tables.iterdir())])
    assert all(files == written[0] for files in written)
    assert written[0][0] == b"arm,mean,p,n\nnone,90.125,3.33333e-10,3\nall,0.3,0.0500005,3\n"


def test_a_grid_of_differences_writes_a_tie_on_one_side_only():
    noise, frame = Noise(1e-12), panel(means=(0.25, -0.35, 1.05)).assign(p_holm=0.01)
    figures = [plots.effect_grid({"one": noise(frame)}, 0.05) for _ in range(20)]
    texts = [[text.get_text() for text in figure.axes[0].texts] for figure in figures]
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize("interpolation", ["none", "nearest"])
@pytest.mark.parametrize("origin", ["upper", "lower"])
def test_the_cells_of_a_picture_lie_where_matplotlib_puts_them(origin, interpolation):
    figure, axis = new_figure(2.0, 3.0)
    cells = np.random.default_rng(0).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    axis.imshow(cells, origin=origin, interpolation=interpolation)
    axis.set_axis_off()
    ours, theirs = io.BytesIO(png(figure, 100)), io.BytesIO()
    FigureCanvasAgg(figure).print_figure(theirs, format="png", bbox_inches=_extent(figure), dpi=100)
    ours, theirs = (np.asarray(PIL.Image.open(file).convert("RGB"), dtype=int) for file in (ours, theirs))
    assert ours.shape == theirs.shape
    assert (np.abs(ours - theirs).max(axis=-1) > 30).mean() < 0.03


def test_settled_numbers_have_ten_digits_and_all_else_stays():
    assert settled({"a": [0.1 + 0.2, 7, "x", None], "b": (np.array([1 / 3]), np.array([1, 2]))}) == {
        "a": [0.3, 7, "x", None],
        "b": (0.3333333333, pytest.approx([1, 2], abs=0)),
    }
    assert settled(90.3 - 90.0 - 0.3) == 0
    assert np.isnan(settled(float("nan")))
    assert settled(-np.inf) == -np.inf
    assert settled(pd.DataFrame({"a": [1.0 + 1e-12], "b": [2]})).to_dict("list") == {"a": [1.0], "b": [2]}


def test_the_grid_has_steps_of_a_hundredth_with_simple_fractions_inside_them():
    places = np.arange(-2000, 2000) / 1000
    assert np.abs(on_grid(places) - places).max() < 0.01
    assert (on_grid(places * (1 + 1e-9)) == on_grid(places)).all()
    assert (on_grid(on_grid(places)) == on_grid(places)).all()
