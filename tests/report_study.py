"""A small study that is trained and published, and its report read as a tree. Not a test file: test_report.py
and test_report_browser.py use it.
"""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import pytest

from pursuhint_lib import plots, statistics
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Pair
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.grid.cells import results_frame, run_cell
from pursuhint_lib.study.grid.hint_layers import hint_choices, layer_similarity
from pursuhint_lib.study.grid.profiles import checked, load_profile
from pursuhint_lib.study.publish.page import Page, runs_behind
from pursuhint_lib.study.publish.report import write_report

PATHS = StudyPaths("smoke")
PAIR = "resnet14-resnet8x0.25"
# What a caption may hold that means something in a page, in an attribute or in an address.
NASTY = "</script><script>alert(1)</script> \"double\" 'single' 100 % #1 & `code` {{ 7 * 7 }}"
ARMS = ("none", "stage-ends", "pursuhint-cka-linear", "segment-middles", "random-1", "random-2")


def small_profile():
    """The smoke profile with few arms, and a second teacher to choose in the layer map."""
    changes = {
        "methods": ("ce", "kd", "at", "sp", "vid"),
        "arms": ARMS,
        "shortcut_seeds": 0,
        "sweeps": (),
        "metrics": ("r2", "cka-linear"),
    }
    return checked(replace(load_profile("smoke"), **changes, example_pair=Pair("resnet20", "resnet8x0.25")))


def use(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Data, work and results are in the folder."""
    for name in ("data", "work", "results"):
        patch.setenv(f"PURSUHINT_{name.upper()}", str(folder / name))


def make_study(folder: Path) -> Path:
    """Train, publish and write the report, all in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        use(folder, patch)
        profile = small_profile()
        for method in profile.methods:
            run_cell(profile, profile.pairs[0], method)
        hint_choices(profile, "resnet14", 3)
        layer_similarity(profile, "resnet20")
        publish(profile)
        write_report(profile, make_plan(profile, "smoke"))
    return folder


def publish(profile) -> None:
    """Tables and figures as the notebooks publish them, and one figure whose words and caption mean harm."""
    frame = results_frame(profile)
    means = statistics.mean_with_interval(frame[frame["method"] == "at"])
    rows = frame[frame["method"] == "at"]
    effects, every = statistics.compared(rows), statistics.against(rows, "stage-ends")
    page = Page(profile, "05_results")
    accuracies = statistics.text_table(means.assign(method="AT"), "arm", "method")
    page.table(accuracies, f"accuracy-{PAIR}", "Accuracies.", runs=runs_behind(rows, accuracies, ["arm"]))
    behind = runs_behind(rows, every, ["method", "arm"], "stage-ends")
    page.table(every[["arm", "mean", "low", "high", "word"]], "stage-ends", "Differences.", runs=behind)
    sides = [(statistics.PURSUHINT, statistics.REFERENCES[minus]) for minus in effects["minus"]]
    behind = [rows.loc[rows["arm"].str.startswith(both), "record"] for both in sides]
    shown = effects[["minus", "pair", "method", "mean", "low", "high", "n", "word"]]
    page.table(shown, "effects", f"The effects. {NASTY}", runs=behind)
    drawn = effects.dropna(subset="mean").assign(label=lambda table: table["minus"], arm="pursuhint-r2")
    page.figure(plots.forest({"PURSUhInT": drawn}), "effects", "The effects.", f"alt: {NASTY}")
    for row in effects.itertuples():
        name = statistics.REFERENCES[row.minus].strip("-")
        page.number(name, "{:+.2f} pp [{:.2f}, {:.2f}]", row.mean, row.low, row.high)
    page = Page(profile, "03_distillation", PAIR, "at")
    page.table(
        means.assign(tiny=1e-5, missing=["–", *means["arm"][1:]])[
            ["arm", "mean", "low", "n", "tiny", "missing"]
        ],
        "accuracy",
        "Means.",
        runs=runs_behind(rows, means, ["arm"]),
    )
    page = Page(profile, "02_hint_points", "resnet14", "3")
    for name in ("one", "two"):
        figure = matplotlib.figure.Figure(figsize=(9, 3))
        axes = figure.subplots()
        axes.plot([0, 3, 1], [0.1, 0.2, 0.15])
        axes.set(title="<b>50 %</b> & \"#1\" 'x'", xlim=(0, 2))
        page.figure(figure, name, f"{name}: {NASTY}")


class Element(SimpleNamespace):
    """An element of a page: ``tag``, ``attrs``, ``inside`` (elements), ``text`` (all of it)."""

    def find(self, tag: str, **attrs) -> list["Element"]:
        found = (
            [self]
            if self.tag == tag and all(value in (self.attrs.get(name) or "") for name, value in attrs.items())
            else []
        )
        return found + [element for child in self.inside for element in child.find(tag, **attrs)]


class Reader(HTMLParser):
    """A page as a tree. Elements that may be left open, as the cells of a row, end with what holds them or
    with the next of their kind.
    """

    EMPTY, OPEN = {"meta", "link", "img", "br"}, {"td", "th", "li", "p", "option"}

    def __init__(self, text: str):
        super().__init__()
        self.root = Element(tag="page", attrs={}, inside=[], text="")
        self.path = [self.root]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in self.OPEN and self.path[-1].tag == tag:
            self.path.pop()
        element = Element(tag=tag, attrs=dict(attrs), inside=[], text="")
        self.path[-1].inside.append(element)
        if tag not in self.EMPTY:
            self.path.append(element)

    def handle_endtag(self, tag):
        while self.path.pop().tag != tag:
            pass

    def handle_data(self, data):
        for element in self.path:
            element.text += data


def page(name: str = "report") -> Element:
    """The report, or the index, read."""
    return Reader(getattr(PATHS, name).read_text(encoding="utf-8")).root


def rows_of(table: Element) -> list[list[Element]]:
    """Cells of the rows of a table, without its head."""
    return [row.find("td") for body in table.find("tbody") for row in body.find("tr")]
