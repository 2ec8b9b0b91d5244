"""What a notebook publishes, on its way into results/: figures, tables and numbers, in forms that diff well,
and the note that a person has written on them.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from IPython.display import Image, Markdown, display
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from ...digits import settled
from ...files import sealed, write_json
from ...inherited import TRAINING, forget
from ...paths import TEMPLATES, VECTOR, StudyPaths, file_name, step_name
from ...plots.saving import png, svg
from ...plots.style import style
from ...settings import Profile
from ...statistics import arms_of
from ..grid.notes import NUMBER_NAME, shown_note

# Of a figure's pixels, in a file and inside a notebook.
DOTS_PER_INCH = 120
PIXELS_PER_POINT = 4 / 3
# What a column of numbers holds; a number may have half of its interval behind it.
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?: ±|$)")
# What stands in a cell without a value.
NOTHING = ("", "–")
# Text with more characters than this is broken into lines.
LONG = 40


class Page:
    """Where one execution of a notebook publishes what it has found.

    Figures and tables also become parts of a page, in the order of their publication, with links that are
    valid in the folder of the results: ``fragments/<step>.json``. Numbers, and the checksums of the tables,
    are in ``numbers/<step>.json``.

    **Arguments:** ``profile``; ``notebook`` its stem; ``parts`` what this execution is about (teacher, pair,
    method …).
    """

    def __init__(self, profile: Profile, notebook: str, *parts: str):
        # Also where the notebook is run by hand, in a shell or pod of another training.
        forget(*TRAINING)
        self.profile, self.step, self.paths = profile, step_name(notebook, *parts), StudyPaths(profile.name)
        self._fragments: dict[str, str] = {}
        self._numbers: dict[str, dict | str] = {}
        for path in (self.paths.fragments(self.step), self.paths.numbers(self.step)):
            path.unlink(missing_ok=True)
        self._log = self.paths.outputs_log(self.step)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.write_text("")

    def figure(self, figure: Figure, name: str, caption: str, alt: str = "", note: bool = True) -> None:
        """Save as PNG and SVG with the caption beside them, and show picture and caption.

        **Arguments:** ``alt`` what the figure shows, for those who don't see it (default: the caption);
        ``note`` whether the profile's note stands on it.
        """
        if self.profile.note and note:
            with style():
                figure.text(0.0, -0.015, self.profile.note, fontsize=6.5, color="#8a4b00", va="top")
        stem = self.paths.figures / f"{self.step}-{name}"
        pixels, vector = png(figure, DOTS_PER_INCH), svg(figure)
        self._write(stem, {".png": pixels, VECTOR: vector, ".md": f"{caption}\n".encode()})
        sides = re.findall(rb' (?:width|height)="([\d.]+)pt"', vector[: vector.index(b">", 99)])
        width, height = (round(float(side) * PIXELS_PER_POINT) for side in sides)
        files = _links(stem, VECTOR, ".png")
        self._add(
            "picture", stem.name, alt=alt or caption, caption=caption, files=files, size=(width, height)
        )
        display(Image(data=pixels), Markdown(f"**Figure.** {caption}"))

    def table(
        self, table: pd.DataFrame, name: str, caption: str, decimals: int = 2, runs: Iterable = ()
    ) -> None:
        """Save as CSV (six digits), Markdown and LaTeX (rounded), and show the Markdown.

        **Arguments:** ``runs`` for each row the name of the record that it was made from, or their names.
        """
        table = settled(table)
        stem = self.paths.tables / f"{self.step}-{name}"
        csv = table.to_csv(index=False, float_format="%.6g").encode()
        shown = table.astype(object).where(table.notna(), None)
        markdown = shown.to_markdown(index=False, floatfmt=f".{decimals}f", missingval=NOTHING[1])
        latex = table.to_latex(
            index=False, float_format=f"%.{decimals}f", caption=caption, escape=True, na_rep=NOTHING[1]
        )
        self._write(stem, {".csv": csv, ".md": f"{caption}\n\n{markdown}\n".encode(), ".tex": latex.encode()})
        records = [[names] if isinstance(names, str) else [*dict.fromkeys(names)] for names in runs]
        rows = [[_cell(value, decimals) for value in row] for row in table.itertuples(index=False)]
        self._add(
            "table",
            stem.name,
            caption=caption,
            files=_links(stem, ".csv", ".md", ".tex"),
            columns=[*table.columns],
            kinds=[_kind([row[place][0] for row in rows]) for place in range(len(table.columns))],
            rows=rows,
            runs=[[record.rpartition("_")[2] for record in names] for names in records],
        )
        self._number(f"table {name}", hashlib.sha256(csv).hexdigest())
        display(Markdown(f"{markdown}\n\n**Table.** {caption}"))

    def number(self, name: str, form: str, *values: float | str) -> None:
        """Publish a number, or several that belong together, under a name by which a note calls them.

        **Arguments:** ``form`` a format string with their unit and a place for each: ``{:+.2f} pp``.

        **Raises:** ``ValueError`` for a name that a note cannot hold.
        """
        # Names of networks and methods of the user's own have a colon.
        name = file_name(name)
        if not re.fullmatch(NUMBER_NAME, name):
            raise ValueError(f"{name!r} cannot name a number; give letters, digits, . _ + and - only")
        plain = settled([np.asarray(value).item() for value in values])
        self._number(name, {"text": form.format(*plain), "values": plain})

    def interval(self, name: str, row: Any) -> str:
        """Publish a difference with its interval under a name, and return its text.

        **Arguments:** ``row`` with ``mean``, ``low`` and ``high`` in pp, as ``itertuples`` gives it.
        """
        values = settled([row.mean, row.low, row.high])
        text = interval_text(*values)
        self.number(name, text, *values)
        return text

    def note(self) -> None:
        """Show what a person has written about this step, with its numbers filled in."""
        display(Markdown(shown_note(self.profile.name, self.step)))

    def _number(self, name: str, entry: dict | str) -> None:
        self._numbers[name] = entry
        self._write_json(self.paths.numbers(self.step), self._numbers)

    def _add(self, kind: str, name: str, **content) -> None:
        """Take a figure or table up into the parts of a page."""
        macro = getattr(environment().get_template("fragments.html.j2").module, kind)
        self._fragments[f"{kind}-{name}"] = macro(name=name, **content).strip()
        self._write_json(self.paths.fragments(self.step), self._fragments)

    def _write_json(self, path: Path, content: dict) -> None:
        write_json(path, sealed(content))
        self._published(path)

    def _write(self, stem: Path, contents: dict[str, bytes]) -> None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for ending, content in contents.items():
            path = _with_ending(stem, ending)
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
            self._published(path)

    def _published(self, path: Path) -> None:
        with self._log.open("a") as log:
            log.write(f"{path}\n")


def interval_text(mean: float, low: float, high: float) -> str:
    """A difference in pp with its interval, where there is one: a single seed gives none."""
    return f"{mean:+.2f} pp" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ", no interval")


def runs_behind(
    frame: pd.DataFrame, rows: pd.DataFrame, by: list[str], reference: str = ""
) -> list[list[str]]:
    """Names of the records that each row of a table was made from.

    **Arguments:** ``frame`` of runs, with a column record; ``rows`` of the table; ``by`` the columns in
    which a row and its runs are the same; ``reference`` an arm, or a family, that each row is compared with.
    """
    compared = [key for key in by if key != "arm"]
    others = frame[frame["arm"].isin(arms_of(frame, reference))]
    return [
        [
            *frame.loc[(frame[by] == row[by]).all(axis=1), "record"],
            *others.loc[(others[compared] == row[compared]).all(axis=1), "record"],
        ]
        for _, row in rows.iterrows()
    ]


def environment() -> Environment:
    """Where the templates of pages are rendered: what they are given is text, and no part of the page."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["prose"] = prose
    return found


def prose(text: str) -> Markup:
    """A sentence of a caption or a notebook, in which names stand between backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _links(stem: Path, *endings: str) -> dict[str, str]:
    """Ending → address of the file, as seen from the folder of the results."""
    return {ending[1:]: quote(f"{stem.parent.name}/{stem.name}{ending}") for ending in endings}


def _cell(value: object, decimals: int) -> tuple[str, str]:
    """A cell's text as it is read, and all digits where that has fewer.

    A number has so many decimals, or two digits where these would leave nothing of it.
    """
    if not isinstance(value, float):
        return str(value), ""
    if np.isnan(value):
        return "", ""
    short, full = f"{value:.{decimals}f}", f"{value:.6g}"
    if value and not float(short):
        short = f"{value:.2g}"
    return short, full if float(short) != float(full) else ""


def _kind(column: list[str]) -> str:
    """What a column holds: ``number``, ``long`` text, or nothing to mention."""
    values = [value for value in column if value not in NOTHING]
    if values and all(map(NUMBER.match, values)):
        return "number"
    return "long" if max(map(len, values), default=0) > LONG else ""


def _with_ending(stem: Path, ending: str) -> Path:
    """Append an ending; names such as resnet8x0.5 have a dot that is not one."""
    return stem.with_name(stem.name + ending)
