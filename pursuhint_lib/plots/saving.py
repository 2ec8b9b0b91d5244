"""Figures as bytes that the last bits of a number don't change: those differ between kinds of processors.

What is drawn is laid on a grid of hundredths: of a pixel before it is painted, of a point in the text of
an SVG.
"""

import io
import re
from functools import lru_cache

import numpy as np
import PIL.Image
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Bbox, IdentityTransform

from .style import style

STEPS = 100
# Where a step ends: the golden ratio. Numbers of a layout are often simple fractions, which would lie on a
# border of one half.
BORDER = 0.6180339887
PADDING = 0.06  # inches
# A figure that is saved gets no new layout.
LAID_OUT = {"figure.constrained_layout.use": False}
NUMBER = re.compile(r"(?<=[\s\"(,])-?\d+(?:\.\d+)?")
HASHED = re.compile(r'(?<=[#"])([A-Za-z]*)[0-9a-f]{10}(?=["\)])')


def on_grid(values: np.ndarray | float, steps: int = STEPS) -> np.ndarray:
    """The values, laid on the grid."""
    return np.floor(np.multiply(values, steps) + BORDER) / steps


def svg(figure: Figure) -> bytes:
    """Vector image with coordinates on the grid, ids by their order, the font named once, one element a line.

    Without date and creator: the same numbers give the same bytes.
    """
    buffer = io.StringIO()
    # The style also says how text and ids are written.
    with style(), rc_context(LAID_OUT):
        undated = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", bbox_inches=_extent(figure), facecolor="white", metadata=undated)
    text = re.sub("<[^>]+>", _shortened, buffer.getvalue())
    # Nothing refers to a picture, and two that are alike would have the same id.
    text = re.sub(' id="image[0-9a-f]+"', "", text)
    names = {}
    text = HASHED.sub(lambda found: names.setdefault(found[0], f"{found[1]}{len(names)}"), text)
    fonts = set(re.findall(r'font-family: [^;"]*', text))
    if len(fonts) == 1:
        # Matplotlib names its whole list of fonts in every word that it writes.
        (font,) = fonts
        text = text.replace(f"{font}; ", "").replace("</style>", f"text{{{font}}}</style>")
    text = '<?xml version="1.0" encoding="utf-8"?>\n' + text[text.index("<svg") :]
    return re.sub(r"\n\s*", "\n", text).encode()


def _shortened(tag: re.Match) -> str:
    """An element in one line with its numbers on the grid, on a finer one where a matrix of cells
    is scaled.
    """
    decimals = 4 if tag[0].startswith("<image") else 2

    def short(number: re.Match) -> str:
        return f"{on_grid(float(number[0]), 10**decimals):.{decimals}f}".rstrip("0").rstrip(".")

    return NUMBER.sub(short, " ".join(tag[0].split()))


def png(figure: Figure, dpi: int) -> bytes:
    """Pixel image of 256 colours, which a chart does not miss and which makes it a third as large."""
    drawn, small = io.BytesIO(), io.BytesIO()
    with style(), rc_context(LAID_OUT):
        canvas = SteadyCanvas(figure)
        canvas.print_figure(drawn, format="png", bbox_inches=_extent(figure), facecolor="white", dpi=dpi)
    with PIL.Image.open(drawn) as image:
        image = image.convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
        image.save(small, format="png", optimize=True)
    return small.getvalue()


@lru_cache(maxsize=1)
def _extent(figure: Figure) -> Bbox:
    """What is drawn of a figure with a rim, in inches. From here on its layout stays, in whatever form it is
    saved.
    """
    figure.draw_without_rendering()
    # With no engine at all, not even one that leaves everything as it is, each form is drawn only once.
    figure.set_layout_engine(None)
    return Bbox(on_grid(figure.get_tightbbox().padded(PADDING).get_points()))


class SteadyRenderer(RendererAgg):
    """Matplotlib's painter, which rounds to whole pixels where lines begin: all that it gets lies on the
    grid.
    """

    def __init__(self, width: float, height: float, dpi: float):
        super().__init__(width, height, dpi)
        # Instead of these the base class draws one path after the other.
        del self.draw_image, self.draw_markers, self.draw_path_collection, self.draw_quad_mesh

    def draw_path(self, gc, path, transform, rgbFace=None):
        placed = Path(on_grid(transform.transform(path.vertices)), path.codes)
        super().draw_path(_clipped(gc), placed, IdentityTransform(), rgbFace)

    def option_scale_image(self):
        return True

    def draw_image(self, gc, x, y, im, transform=None):
        """A matrix of cells [rows, columns, 4] between two corners, each pixel in the colour of its cell.

        Without a transform it is a picture that matplotlib has brought to its size.
        """
        if transform is None:
            self._renderer.draw_image(_clipped(gc), *on_grid((x, y)), im)
            return
        corners = np.add(transform.transform([(0, 0), (1, 1)]), (x, y))
        x0, y0, x1, y1 = np.rint(on_grid(corners)).astype(int).ravel()
        pixels = im[_cells(y0, y1, len(im))][:, _cells(x0, x1, im.shape[1])]
        self._renderer.draw_image(_clipped(gc), min(x0, x1), min(y0, y1), np.ascontiguousarray(pixels))

    def draw_text(self, gc, x, y, *arguments, **keywords):
        super().draw_text(_clipped(gc), *on_grid((x, y)), *arguments, **keywords)


def _cells(start: int, end: int, count: int) -> np.ndarray:
    """For each pixel between two ends, upwards, the cell that it lies in, of so many from the
    first end on.
    """
    pixels = abs(end - start)
    cells = (2 * np.arange(pixels) + 1) * count // (2 * pixels)
    return cells if start < end else cells[::-1]


def _clipped(gc):
    """The graphics context with its clipping rectangle on the grid."""
    if (box := gc.get_clip_rectangle()) is not None:
        gc.set_clip_rectangle(Bbox(on_grid(box.get_points())))
    return gc


class SteadyCanvas(FigureCanvasAgg):
    """Canvas of a figure that is painted on the grid."""

    def get_renderer(self) -> SteadyRenderer:
        self.renderer = SteadyRenderer(*self.get_width_height(physical=True), self.figure.dpi)
        return self.renderer
