"""Figures and tables of a notebook on their way into results/, in a form that diffs well."""

import gzip
import io
from pathlib import Path

import pandas as pd
import PIL.Image
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from ...paths import VECTOR, StudyPaths, step_name
from ...plots import style
from ...settings import Profile

# Dots per inch of a PNG file, and of a figure inside a notebook.
FILE_DPI = 140
INLINE_DPI = 100


class Page:
    """Where one execution of a notebook publishes its figures and tables.

    **Arguments:** ``profile``; ``notebook`` its stem; ``parts`` what this execution is about (teacher, pair,
    method …).
    """

    def __init__(self, profile: Profile, notebook: str, *parts: str):
        self.profile, self.step, self.paths = profile, step_name(notebook, *parts), StudyPaths(profile.name)
        self._log = self.paths.outputs_log(self.step)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.write_text("")

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """Save as PNG and compressed SVG with the caption beside them, and show picture and caption. The
        profile's note stands on the figure.
        """
        if self.profile.note:
            figure.text(0.0, -0.015, self.profile.note, fontsize=6.5, color="#8a4b00", va="top")
        stem = self.paths.figures / f"{self.step}-{name}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        self._write(_with_ending(stem, ".png"), _png(figure, FILE_DPI))
        self._write(_with_ending(stem, VECTOR), _svg(figure))
        self._write(_with_ending(stem, ".md"), f"{caption}\n".encode())
        display(Image(data=_png(figure, INLINE_DPI)), Markdown(f"**Figure.** {caption}"))

    def table(self, table: pd.DataFrame, name: str, caption: str, decimals: int = 2) -> None:
        """Save as CSV (all digits), Markdown and LaTeX (rounded), and show the Markdown."""
        stem = self.paths.tables / f"{self.step}-{name}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        markdown = table.to_markdown(index=False, floatfmt=f".{decimals}f")
        latex = table.to_latex(index=False, float_format=f"%.{decimals}f", caption=caption, escape=True)
        self._write(_with_ending(stem, ".csv"), table.to_csv(index=False, float_format="%.6g").encode())
        self._write(_with_ending(stem, ".md"), f"{caption}\n\n{markdown}\n".encode())
        self._write(_with_ending(stem, ".tex"), latex.encode())
        display(Markdown(f"{markdown}\n\n**Table.** {caption}"))

    def _write(self, path: Path, content: bytes) -> None:
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
        with self._log.open("a") as log:
            log.write(f"{path}\n")


def _with_ending(stem: Path, ending: str) -> Path:
    """Append an ending; names such as resnet8x0.5 have a dot that is not one."""
    return stem.with_name(stem.name + ending)


def _svg(figure: Figure) -> bytes:
    """Compressed vector image without date and creator: the same numbers give the same bytes."""
    buffer = io.BytesIO()
    # The style also says how text and ids are written.
    with style():
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.06,
            facecolor="white",
            metadata={"Date": None, "Creator": None},
        )
    return gzip.compress(buffer.getvalue(), mtime=0)


def _png(figure: Figure, dpi: int) -> bytes:
    """Pixel image of 256 colours, which a chart does not miss and which makes it a third as large."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.06, facecolor="white", dpi=dpi)
    with PIL.Image.open(drawn) as image:
        image.convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE).save(
            small, format="png", optimize=True
        )
    return small.getvalue()
