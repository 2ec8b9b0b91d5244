"""One page with everything that a profile has published: figures, tables, their records, and the layer map.
It asks nothing of any other place.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ...distillers import distiller
from ...files import replacing
from ...paths import NOTEBOOKS, TEMPLATES, VECTOR, StudyPaths, shown
from ...plots.style import SAFE
from ...settings import Profile, SettingsError, resolved
from ..engine.execution import duration
from ..engine.plan import Step
from ..grid.cells import results_frame
from .layer_map import TARGET, bokeh_script, layer_map_data, layer_map_drawing
from .report_runs import COLUMNS, all_runs
from .report_tables import (
    Table,
    caption_of,
    damaged,
    forms,
    published_text,
    read_table,
    stem,
    with_column_after,
)
from .verify import write_sums

# What the page is made from, besides this package: folders of the results and endings of their files.
INPUTS = {
    "figures": (VECTOR, ".md"),
    "tables": (".csv", ".md"),
    "hints": (".json",),
    "records": (".json",),
    "notebooks": (".ipynb",),
}
# So many characters of a page say what it was made from.
HEAD = 2000
PIXELS_PER_POINT = 4 / 3
CLAIMS = "05_results-claims"
# More executions of one notebook than this are folded away.
OPEN_STEPS = 2


@dataclass(frozen=True)
class Picture:
    """A figure. **Arguments:** ``name`` stem of its files; ``caption``; ``source`` as the value of an image's
    attribute; ``files`` as links; ``width``, ``height`` in pixels.
    """

    name: str
    caption: str
    source: Markup
    files: tuple[str, ...]
    width: int
    height: int


@dataclass(frozen=True)
class Part:
    """One execution of a notebook. **Arguments:** ``name`` of the step; ``group``, ``label`` what it was
    about; ``notebook`` as a link.
    """

    name: str
    group: str
    label: str
    notebook: str
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Chapter:
    """All executions of one notebook. **Arguments:** ``name`` of the notebook; ``title``, ``question`` as its
    first cell has them.
    """

    name: str
    title: str
    question: str
    parts: tuple[Part, ...]

    @property
    def groups(self) -> list[tuple[str, list[Part]]]:
        """Parts that are about the same, under its name."""
        return [(group, list(parts)) for group, parts in groupby(self.parts, lambda part: part.group)]

    @property
    def folded(self) -> bool:
        """Whether there are too many parts to show all at once."""
        return len(self.parts) > OPEN_STEPS


def write_report(profile: Profile, steps: Sequence[Step]) -> Path:
    """Write ``results/<profile>/report.html``, unless the one that is there was made from the same files.

    **Arguments:** ``steps`` as ``make_plan`` gives them.

    **Returns:** the page.

    **Raises:** ``SettingsError`` naming a file that is missing or damaged.
    """
    path = StudyPaths(profile.name).report
    made_from = _made_from(profile, steps)
    if path.is_file():
        with path.open("rb") as file:
            if made_from.encode() in file.read(HEAD):
                return path
    page = _page(profile, steps, made_from)
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")
    return path


def _made_from(profile: Profile, steps: Sequence[Step]) -> str:
    """One hash of all that the page depends on: the profile, its plan, what is published and the files that
    make the page.
    """
    results = StudyPaths(profile.name).results
    files = [
        file
        for folder, endings in INPUTS.items()
        for file in sorted((results / folder).glob("*"))
        if file.suffix in endings
    ]
    files += sorted([*TEMPLATES.iterdir(), *Path(__file__).parent.glob("*.py")])
    digest = hashlib.sha256(
        json.dumps([resolved(profile), [step.name for step in steps]], sort_keys=True).encode()
    )
    for file in files:
        # The name and the size keep the border between two files.
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _page(profile: Profile, steps: Sequence[Step], made_from: str) -> str:
    frame = results_frame(profile)
    frame = frame if not frame.empty else pd.DataFrame(columns=list(COLUMNS))
    chapters = list(_chapters(profile, steps, frame))
    parts = [part for chapter in chapters for part in chapter.parts]
    claims = next((table for part in parts for table in part.tables if table.name == CLAIMS), None)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    # The order of entries has a meaning: it is that of the profile.
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": False,
        "ensure_ascii": False,
        "separators": (",", ":"),
    }
    layer_map = layer_map_data(profile)
    return environment.get_template("report.html.j2").render(
        profile=profile,
        made_from=made_from,
        colours=SAFE,
        chapters=chapters,
        claims=with_column_after(claims, "verdict", "claim") if claims else None,
        claims_picture=next(
            (picture for part in parts for picture in part.pictures if picture.name == CLAIMS), None
        ),
        summary=_summary(profile, frame, claims),
        runs=all_runs(frame),
        layer_map=layer_map,
        target=TARGET,
        drawing=layer_map_drawing(),
        # Its script is by far the largest part of a page without a map.
        bokeh=Markup(bokeh_script()) if layer_map["teachers"] else "",
    )


def _chapters(profile: Profile, steps: Sequence[Step], frame: pd.DataFrame) -> Iterator[Chapter]:
    """A chapter for each notebook of the plan, and one for what no step of it has published."""
    paths = StudyPaths(profile.name)
    figures, tables = (
        {stem(file): file for file in sorted(folder.glob(f"*{end}"))}
        for folder, end in ((paths.figures, VECTOR), (paths.tables, ".csv"))
    )
    names = [step.name for step in steps]
    owners = {name: _owner(name, names) for name in (*figures, *tables)}

    def part(name: str | None, step: Step | None) -> Part:
        pictures = tuple(_picture(file) for stem_, file in figures.items() if owners[stem_] == name)
        found = tuple(
            read_table(profile, step, file, frame) for stem_, file in tables.items() if owners[stem_] == name
        )
        executed = name is not None and (paths.notebooks / f"{name}.ipynb").is_file()
        group, label = _about(profile, step) if step else ("", "")
        return Part(
            name or "others", group, label, f"notebooks/{name}.ipynb" if executed else "", pictures, found
        )

    for notebook, mine in groupby(steps, lambda step: step.notebook):
        yield Chapter(
            notebook,
            *_heading(NOTEBOOKS / f"{notebook}.ipynb"),
            tuple(part(step.name, step) for step in mine),
        )
    if None in owners.values():
        yield Chapter(
            "others",
            "Other files",
            "Figures and tables that no step of the present plan publishes.",
            (part(None, None),),
        )


def _owner(name: str, steps: Sequence[str]) -> str | None:
    """The step that a figure or table is of: the longest with which its name begins."""
    return max((step for step in steps if name.startswith(f"{step}-")), key=len, default=None)


def _about(profile: Profile, step: Step) -> tuple[str, str]:
    """What a step was executed for, in general and in particular."""
    given = step.parameters
    if "pair" in given:
        pair = profile.pair(given["pair"])
        return f"{pair.teacher} → {pair.student}", distiller(given["method"]).title
    return "", ", ".join(
        [
            *([given["teacher"]] if "teacher" in given else []),
            *([f"K = {given['k']}"] if "k" in given else []),
        ]
    )


def _heading(notebook: Path) -> tuple[str, str]:
    """Title and question of a notebook, from its first cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "".join(cells[0]["source"])
    title, question = (
        re.match(r"# (.+)", text),
        re.search(r"\*\*Question\.\*\* (.+?)(?:\n\n|$)", text, flags=re.S),
    )
    return title[1] if title else notebook.stem, " ".join(question[1].split()) if question else ""


def _picture(path: Path) -> Picture:
    text = published_text(path)
    try:
        root = ElementTree.fromstring(text)
        width, height = (
            round(float(root.attrib[side].removesuffix("pt")) * PIXELS_PER_POINT)
            for side in ("width", "height")
        )
        source = image_source(text)
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise damaged(path, error) from None
    return Picture(stem(path), caption_of(path), source, forms(path, VECTOR, ".png"), width, height)


def image_source(svg: str) -> Markup:
    """A vector image as the value of an image's attribute between apostrophes: nothing in it can run, and its
    ids cannot meet those of others.

    Only what has a meaning in an address or in the attribute is written otherwise: base64 would make it a
    third larger.
    """
    body = " ".join(svg[svg.index("<svg") :].split())
    address = "data:image/svg+xml;charset=utf-8," + body.replace("%", "%25").replace("#", "%23")
    return Markup(address.replace("&", "&amp;").replace("'", "&#39;"))


def prose(text: str) -> Markup:
    """A sentence of a caption or a notebook, in which names stand between backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _summary(profile: Profile, frame: pd.DataFrame, claims: Table | None) -> str:
    """What was done and what came of it, in one paragraph."""
    runs = frame.drop_duplicates("record")
    if runs.empty:
        return "Nothing of this profile has been run yet."
    failed = int((runs["status"] != "ok").sum())
    counts = [
        _counted(len(profile.pairs), "pair"),
        _counted(len(profile.methods), "method"),
        _counted(len(profile.arms), "arm"),
    ]
    text = (
        f"{_counted(len(runs), 'student run')} of {', '.join(counts)} and "
        f"{_counted(frame['seed'].nunique(), 'seed')} are on record; "
    )
    text += (
        f"{failed or 'none'} of them failed. Accuracies are those of the last epoch on test images, "
        "differences are paired within a seed. "
    )
    if claims is None or not claims.rows or "verdict" not in claims.columns:
        return text + "No claim has been judged."
    verdicts = [row.cells[claims.columns.index("verdict")].text for row in claims.rows]
    tally = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    meaning = "a claim is undecided where the data neither shows it beyond chance nor rules it out."
    return f"{text}Of {_counted(len(verdicts), 'claim')}: {', '.join(tally)}; {meaning}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def conclude(profile: Profile, steps: list[Step], seconds: float) -> None:
    """What is done once all steps are: checksums, a summary in print, and the report.

    **Arguments:** ``seconds`` that the steps took.

    **Raises:** ``SettingsError`` naming a file of the results that is damaged.
    """
    paths = StudyPaths(profile.name)
    if not paths.sums.is_file():
        write_sums(paths.results)
    print(f"\nAll {len(steps)} steps are done ({duration(seconds)}): {shown(paths.results)}")
    for folder, ending in ((paths.figures, VECTOR), (paths.tables, ".csv"), (paths.notebooks, ".ipynb")):
        print(f"  {folder.name}: {sum(1 for _ in folder.glob(f'*{ending}'))}")
    claims = paths.tables / "05_results-claims.csv"
    if claims.is_file():
        print(f"\nVerdicts{f' ({profile.note})' if profile.note else ''}:")
        try:
            for row in pd.read_csv(claims)[["verdict", "claim", "mean", "low", "high", "n"]].itertuples():
                interval = f"{row.mean:+.2f} pp [{row.low:+.2f}, {row.high:+.2f}]"
                print(f"  {row.verdict:15s} {row.claim}: {interval}, {row.n} seeds")
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{shown(claims)} cannot be read ({error}); delete it, and the same command draws it again"
            ) from None
    print(f"\nReport, one page with all of it: {shown(write_report(profile, steps))}")
