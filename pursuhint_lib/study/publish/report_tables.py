"""Published tables, read again for the report: numbers rounded to be read, with their full digits, and the
runs behind each row.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from ...paths import VECTOR
from ...settings import Profile, SettingsError
from ..engine.plan import Step
from .report_runs import Behind, runs_behind

NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
# What stands in a cell without a value.
NOTHING = ("", "–", "nan")
DECIMALS = 2
# Text with more characters than this is broken into lines.
LONG = 40


@dataclass(frozen=True)
class Cell:
    """What stands in a table's cell. **Arguments:** ``text`` as it is read; ``full`` all its digits, where
    ``text`` has fewer.
    """

    text: str
    full: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table. **Arguments:** ``cells``; ``behind`` the runs that it was made from."""

    cells: tuple[Cell, ...]
    behind: Behind


@dataclass(frozen=True)
class Table:
    """A table of the report.

    **Arguments:** ``name`` stem of its files; ``caption``; ``columns``; ``kinds`` what each of them holds:
    ``number``, ``long`` text, or nothing to mention; ``rows``; ``files`` its forms, as links.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[Row, ...]
    files: tuple[str, ...]

    @property
    def linked(self) -> bool:
        """Whether any row says which runs it was made from."""
        return any(row.behind.count for row in self.rows)


def read_table(profile: Profile, step: Step | None, path: Path, frame: pd.DataFrame) -> Table:
    """A published table with the runs behind its rows.

    **Arguments:** ``step`` that published it, if it is of the plan; ``path`` its CSV file; ``frame`` as
    ``results_frame`` gives it.

    **Raises:** ``SettingsError`` naming a file that is missing or damaged.
    """
    columns, *lines = _lines(path)
    name, rows = stem(path), [dict(zip(columns, line, strict=True)) for line in lines]
    behind = runs_behind(profile, step, name, rows, frame)
    found = tuple(Row(tuple(map(rounded, line)), runs) for line, runs in zip(lines, behind, strict=True))
    kinds = tuple(_kind([line[place] for line in lines]) for place in range(len(columns)))
    return Table(name, caption_of(path), tuple(columns), kinds, found, forms(path, ".csv", ".md", ".tex"))


def _lines(path: Path) -> list[list[str]]:
    """A CSV file, its columns' names first, as text: what is read as a number and written again may have
    other digits.
    """
    text = published_text(path)
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise damaged(path, error) from None
    if (
        not lines
        or not text.endswith("\n")
        or len(set(lines[0])) < len(lines[0])
        or {len(line) for line in lines} != {len(lines[0])}
    ):
        raise damaged(path, "it is not a whole table")
    return lines


def rounded(text: str) -> Cell:
    """A number with two decimals, or with two digits where that would leave nothing of it; other text, and
    shorter numbers, as they are.
    """
    if not NUMBER.fullmatch(text):
        return Cell(text)
    value = float(text.replace("−", "-"))
    short = f"{value:.{DECIMALS}f}"
    if value and not float(short):
        short = f"{value:.2g}"
    return Cell(short, text) if len(short) < len(text) else Cell(text)


def _kind(column: Sequence[str]) -> str:
    """What a column holds; numbers may have their half intervals behind them."""
    values = [value for value in column if value not in NOTHING]
    if values and all(re.match(NUMBER.pattern + r"(?: ±|$)", value) for value in values):
        return "number"
    return "long" if max(map(len, values), default=0) > LONG else ""


def with_column_after(table: Table, column: str, first: str) -> Table:
    """The table with one column moved behind another, so that it is seen first where there is little room.

    **Arguments:** ``column`` to move; ``first`` the one that it follows; where the table lacks either it
    stays as it is.
    """
    if not {column, first} <= set(table.columns):
        return table
    order = [place for place, name in enumerate(table.columns) if name != column]
    order.insert(order.index(table.columns.index(first)) + 1, table.columns.index(column))
    rows = tuple(replace(row, cells=tuple(row.cells[place] for place in order)) for row in table.rows)
    return replace(
        table,
        columns=tuple(table.columns[p] for p in order),
        kinds=tuple(table.kinds[p] for p in order),
        rows=rows,
    )


def stem(path: Path) -> str:
    """Name of a published file without its ending; other dots, as in resnet8x0.5, belong to the name."""
    return path.name.removesuffix(path.suffix)


def forms(path: Path, *endings: str) -> tuple[str, ...]:
    """The files of one figure or table that are there, as links from the report."""
    files = [path.with_name(f"{stem(path)}{ending}") for ending in endings]
    return tuple(f"{file.parent.name}/{file.name}" for file in files if file.is_file())


def caption_of(path: Path) -> str:
    """The caption beside a figure or table: the first paragraph of the Markdown file of the same name.

    **Raises:** ``SettingsError`` if there is none.
    """
    file = path.with_name(f"{stem(path)}.md")
    if not file.is_file():
        raise SettingsError(
            f"{file} is missing, the caption of {path.name}; delete {path.name}, and the same command draws "
            "both again"
        )
    caption = published_text(file).split("\n\n")[0].strip()
    if not caption:
        raise damaged(file, "it has no caption")
    return caption


def published_text(path: Path) -> str:
    """Text of a published file, also of a compressed one.

    **Raises:** ``SettingsError`` for one that holds something else.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == VECTOR else content).decode()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(path, error) from None
    if "\0" in text:
        raise damaged(path, "zeros in place of text")
    return text


def damaged(path: Path, why: object) -> SettingsError:
    """What to say of a published file that is not as it was written."""
    return SettingsError(
        f"{path} is damaged ({' '.join(str(why).split())}); delete it, and the same command draws it again"
    )
