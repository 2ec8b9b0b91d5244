"""Two pages on what a profile has published. The report has everything inside it: figures, tables, their
records, and the layer map. The index is small: questions, answers and figures, which it only points to.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import mistune
import pandas as pd
from markupsafe import Markup

from ... import records
from ...distillers import distiller
from ...files import read_json, replacing
from ...paths import NOTEBOOKS, VECTOR, StudyPaths, shown
from ...plots.style import SAFE
from ...settings import Profile, SettingsError
from ..engine.execution import duration
from ..engine.plan import Step
from ..grid.cells import results_frame
from ..grid.notes import ANSWER, read_notes, shown_note
from .layer_map import TARGET, bokeh_script, layer_map_data, layer_map_drawing
from .page import environment, interval_text
from .readme import heading
from .verify import write_sums

# What stands in the summary, and in no other part; with it, the layers and accuracies of the first pair.
EFFECTS, LAYERS = "05_results-effects", "picture-05_results-accuracy-{}"
COLUMNS = ("pair", "method", "minus", "mean", "low", "high", "word")
IMAGE = re.compile(r"src='(figures/[^']+)'")


def write_report(profile: Profile, steps: Sequence[Step]) -> Path:
    """Write ``results/<profile>/report.html`` and ``index.html``; the same files give the same bytes.

    **Arguments:** ``steps`` as ``make_plan`` gives them.

    **Returns:** the report.

    **Raises:** ``SettingsError`` naming a file that is missing or damaged.
    """
    paths, content = StudyPaths(profile.name), _content(profile, steps)
    for path, page in ((paths.index, _index(content)), (paths.report, _report(profile, content))):
        with replacing(path) as draft:
            draft.write_text(page, encoding="utf-8", newline="\n")
    return paths.report


def _content(profile: Profile, steps: Sequence[Step]) -> dict:
    """What both pages show, with figures as addresses."""
    chapters = list(_chapters(profile, steps))
    published = {
        name: html
        for chapter in chapters
        for part in chapter["parts"]
        for name, html in part["fragments"].items()
    }
    first = (f"picture-{EFFECTS}", LAYERS.format(profile.pairs[0].name), f"table-{EFFECTS}")
    return {
        "profile": profile,
        "colours": SAFE,
        "chapters": chapters,
        "summarised": {name: published[name] for name in first if name in published},
        "answer": _note(profile, ANSWER),
    }


def _index(content: dict) -> str:
    return environment().get_template("index.html.j2").render(content)


def _report(profile: Profile, content: dict) -> str:
    frame = results_frame(profile)
    templates = environment()
    # The order of entries has a meaning: it is that of the profile.
    templates.policies["json.dumps_kwargs"] = {
        "sort_keys": False,
        "ensure_ascii": False,
        "separators": (",", ":"),
    }
    folder = StudyPaths(profile.name).results
    templates.filters["inside"] = lambda html: _with_images(folder, html)
    layer_map = layer_map_data(profile)
    return templates.get_template("report.html.j2").render(
        **content,
        summary=_summary(profile, frame),
        runs=[_run(row) for row in frame.to_dict("records")],
        accuracies=_accuracies(profile),
        layer_map=layer_map,
        target=TARGET,
        drawing=layer_map_drawing(),
        # Its script is by far the largest part of a page without a map.
        bokeh=Markup(bokeh_script()) if layer_map["teachers"] else "",
    )


def _chapters(profile: Profile, steps: Sequence[Step]) -> Iterator[dict]:
    """A chapter for each notebook of the plan, and one for what no step of it has published.

    **Returns:** name, title, question (as the notebook's first cell has them) and parts, one per execution.
    """
    for notebook, mine in groupby(steps, lambda step: step.notebook):
        title, question = heading(NOTEBOOKS / f"{notebook}.ipynb")
        parts = [_part(profile, step.name, *_about(profile, step)) for step in mine]
        yield {"name": notebook, "title": title, "question": question, "parts": parts}
    there = {file.stem for file in StudyPaths(profile.name).fragments("").parent.glob("*.json")}
    others = [_part(profile, name, "", "") for name in sorted(there - {step.name for step in steps})]
    if others:
        question = "What no step of the present plan has published."
        yield {"name": "others", "title": "Others", "question": question, "parts": others}


def _part(profile: Profile, name: str, group: str, label: str) -> dict:
    """One execution of a notebook: name of the step, what it was about, link to its executed copy, what a
    person has written of it, and its figures and tables by their names, in order.
    """
    paths = StudyPaths(profile.name)
    executed = (paths.notebooks / f"{name}.ipynb").is_file()
    return {
        "name": name,
        "group": group,
        "label": label,
        "notebook": quote(f"notebooks/{name}.ipynb") if executed else "",
        "note": _note(profile, name),
        "fragments": _fragments(paths, name),
    }


def _fragments(paths: StudyPaths, step: str) -> dict[str, Markup]:
    """What a step has published as parts of a page."""
    found = read_json(paths.fragments(step)) or {}
    return {name: Markup(html) for name, html in found.items()}


def _with_images(folder: Path, html: Markup) -> Markup:
    """A part of a page with its images inside it."""
    return Markup(IMAGE.sub(lambda image: f"src='{image_source(folder / unquote(image[1]))}'", html))


def _about(profile: Profile, step: Step) -> tuple[str, str]:
    """What a step was executed for, in general and in particular."""
    given = step.parameters
    if "pair" in given:
        pair = profile.pair(given["pair"])
        about = f"{pair.teacher} → {pair.student}"
        return (about, distiller(given["method"]).title) if "method" in given else ("", about)
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
    html = mistune.create_markdown()(shown_note(profile.name, section))
    # A note's links start at the root of the project, where ANSWERS.md shows it too.
    return Markup(re.sub(r'href="(?![a-z]+:|#)', 'href="../../', html))


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
    effects = paths.tables / f"{EFFECTS}.csv"
    if effects.is_file():
        print(f"\nPURSUhInT's layers against others{f' ({profile.note})' if profile.note else ''}:")
        try:
            for row in pd.read_csv(effects)[[*COLUMNS]].itertuples():
                told = f": {interval_text(row.mean, row.low, row.high)}" * (row.mean == row.mean)
                print(f"  {row.pair}, {row.method}, minus {row.minus}{told}: {row.word}")
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{shown(effects)} cannot be read ({error}); delete it, and the same command draws it again"
            ) from None
    print(f"\nReport, one page with all of it: {shown(write_report(profile, steps))}")
