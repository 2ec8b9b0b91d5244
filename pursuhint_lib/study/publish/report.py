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
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import mistune
import pandas as pd
from markupsafe import Markup

from ... import records
from ...distillers import distiller
from ...files import replacing
from ...paths import NOTEBOOKS, TEMPLATES, VECTOR, StudyPaths, notes_file
from ...plots.style import SAFE
from ...settings import Profile, SettingsError, resolved
from ..engine.plan import Step
from ..grid.cells import results_frame
from ..grid.hint_layers import read_json
from ..grid.notes import ANSWER, read_notes, shown
from .layer_map import TARGET, bokeh_script, layer_map_data, layer_map_drawing
from .page import environment
from .readme import heading

# What the page is made from, besides this package: folders of the results and endings of their files.
INPUTS = {
    "figures": VECTOR,
    "fragments": ".json",
    "numbers": ".json",
    "hints": ".json",
    "records": ".json",
    "notebooks": ".ipynb",
}
# So many characters of a page say what it was made from.
HEAD = 2000
# What stands in the summary, and in no other part.
CLAIMS = ("table-05_results-claims", "picture-05_results-claims")
# More executions of one notebook than this are folded away.
OPEN_STEPS = 2
IMAGE = re.compile(r"src='(figures/[^']+)'")


@dataclass(frozen=True)
class Part:
    """One execution of a notebook.

    **Arguments:** ``name`` of the step; ``group``, ``label`` what it was about; ``notebook`` as a link;
    ``note`` what a person has written of it; ``fragments`` its figures and tables by their names, in order.
    """

    name: str
    fragments: dict[str, Markup]
    group: str = ""
    label: str = ""
    notebook: str = ""
    note: str = ""


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
    """One hash of all that the page depends on: the profile, its plan, what is published, the notes, and the
    files that make the page.
    """
    results = StudyPaths(profile.name).results
    files = [file for folder, end in INPUTS.items() for file in sorted((results / folder).glob(f"*{end}"))]
    files += filter(Path.is_file, [notes_file(profile.name)])
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
    chapters = list(_chapters(profile, steps))
    parts = [part for chapter in chapters for part in chapter.parts]
    published = {name: html for part in parts for name, html in part.fragments.items()}
    templates = environment()
    # The order of entries has a meaning: it is that of the profile.
    templates.policies["json.dumps_kwargs"] = {
        "sort_keys": False,
        "ensure_ascii": False,
        "separators": (",", ":"),
    }
    layer_map = layer_map_data(profile)
    return templates.get_template("report.html.j2").render(
        profile=profile,
        made_from=made_from,
        colours=SAFE,
        chapters=chapters,
        claims={name: published[name] for name in CLAIMS if name in published},
        summary=_summary(profile, frame),
        answer=_note(profile, ANSWER),
        runs=[_run(row) for row in frame.to_dict("records")],
        accuracies=_accuracies(profile),
        layer_map=layer_map,
        target=TARGET,
        drawing=layer_map_drawing(),
        # Its script is by far the largest part of a page without a map.
        bokeh=Markup(bokeh_script()) if layer_map["teachers"] else "",
    )


def _chapters(profile: Profile, steps: Sequence[Step]) -> Iterator[Chapter]:
    """A chapter for each notebook of the plan, and one for what no step of it has published."""
    paths = StudyPaths(profile.name)
    for notebook, mine in groupby(steps, lambda step: step.notebook):
        parts = []
        for step in mine:
            group, label = _about(profile, step)
            executed = (paths.notebooks / f"{step.name}.ipynb").is_file()
            link = quote(f"notebooks/{step.name}.ipynb") if executed else ""
            note = _note(profile, step.name)
            parts.append(Part(step.name, _fragments(paths, step.name), group, label, link, note))
        yield Chapter(notebook, *heading(NOTEBOOKS / f"{notebook}.ipynb"), tuple(parts))
    there = {file.name.removesuffix(".json") for file in paths.fragments("").parent.glob("*.json")}
    others = sorted(there - {step.name for step in steps})
    if others:
        parts = tuple(Part(name, _fragments(paths, name)) for name in others)
        yield Chapter("others", "Others", "What no step of the present plan has published.", parts)


def _fragments(paths: StudyPaths, step: str) -> dict[str, Markup]:
    """What a step has published as parts of a page, with its images inside them."""

    def inside(image: re.Match) -> str:
        return f"src='{image_source(paths.results / unquote(image[1]))}'"

    found = read_json(paths.fragments(step)) or {}
    return {name: Markup(IMAGE.sub(inside, html)) for name, html in found.items()}


def _about(profile: Profile, step: Step) -> tuple[str, str]:
    """What a step was executed for, in general and in particular."""
    given = step.parameters
    if "pair" in given:
        pair = profile.pair(given["pair"])
        return f"{pair.teacher} → {pair.student}", distiller(given["method"]).title
    number = f"K = {given['k']}" if "k" in given else ""
    return "", ", ".join(filter(None, (given.get("teacher"), number)))


def image_source(path: Path) -> Markup:
    """A vector image as the value of an image's attribute between apostrophes: nothing in it can run, and its
    ids cannot meet those of others.

    Only what has a meaning in an address or in the attribute is written otherwise: base64 would make it a
    third larger.

    **Raises:** ``SettingsError`` for a file that is missing or damaged.
    """
    try:
        svg = path.read_text(encoding="utf-8")
        if "width" not in ElementTree.fromstring(svg).attrib:
            raise ValueError("it is no figure")
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise SettingsError(
            f"{path} is missing or damaged ({' '.join(str(error).split())}); delete it, and the same command "
            "draws it again"
        ) from None
    body = " ".join(svg[svg.index("<svg") :].split())
    address = "data:image/svg+xml;charset=utf-8," + body.replace("%", "%25").replace("#", "%23")
    return Markup(address.replace("&", "&amp;").replace("'", "&#39;"))


def _note(profile: Profile, section: str) -> str:
    """What a person has written, as a part of the page; empty where nobody has."""
    if section not in read_notes(profile.name):
        return ""
    return Markup(mistune.create_markdown()(shown(profile.name, section)))


def _summary(profile: Profile, frame: pd.DataFrame) -> str:
    """What was done, in one paragraph."""
    if frame.empty:
        return "Nothing of this profile has been run yet."
    runs = frame.drop_duplicates("record")
    counts = [
        _counted(len(profile.pairs), "pair"),
        _counted(len(profile.methods), "method"),
        _counted(len(profile.arms), "arm"),
    ]
    return (
        f"{_counted(len(runs), 'student run')} of {', '.join(counts)} and "
        f"{_counted(frame['seed'].nunique(), 'seed')} are on record; "
        f"{int((runs['status'] != 'ok').sum()) or 'none'} of them failed. Accuracies are those of the last "
        "epoch on test images, differences are paired within a seed."
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _run(row: dict) -> dict:
    """A run of the grid for the list of all runs: pair, method, arm, seed, accuracy (two decimals), full (all
    digits), link, hash.
    """
    failed = pd.isna(row["accuracy"])
    shown = {
        "accuracy": row["status"] if failed else f"{row['accuracy']:.2f}",
        "full": "" if failed else str(row["accuracy"]),
        "link": quote(f"records/{row['record']}.json", safe="/+"),
        "hash": row["record"].rpartition("_")[2],
    }
    return {key: row[key] for key in ("pair", "method", "arm", "seed")} | shown


def _accuracies(profile: Profile) -> dict[str, tuple[str, str]]:
    """Hash of a record → its name, and its accuracy as text, of all records of the profile."""
    found = {}
    for file in sorted(StudyPaths(profile.name).records.glob("*.json")):
        record = records.read(file)
        accuracy = record.metrics.get("accuracy")
        text = record.status if accuracy is None else f"{accuracy:.2f}"
        found[record.name.rpartition("_")[2]] = (record.name, text)
    return found
