"""The report: one page that says what the published files and the records say, and needs nothing else."""

import csv
import io
import json
import shutil
import statistics as plain
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from report_study import ARMS, NASTY, PATHS, Element, make_study, page, rows_of, small_profile, use

from pursuhint_lib.files import sealed, unsealed
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.grid.cells import results_frame
from pursuhint_lib.study.publish import report as report_module
from pursuhint_lib.study.publish.report import conclude, write_report
from pursuhint_lib.study.publish.report_tables import rounded
from pursuhint_lib.study.publish.verify import write_sums


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a small study and its report, which every test leaves as it was."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(autouse=True)
def in_its_folder(own_folders, study, monkeypatch):
    use(study, monkeypatch)


def accuracies(cell: Element) -> dict[str, float]:
    """File → accuracy in the records that a cell links, read by hand."""
    files = [PATHS.results / unquote(link.attrs["href"]) for link in cell.find("a")]
    return {file.name: json.loads(file.read_text())["metrics"]["accuracy"] for file in files}


# ---- the page


def test_every_address_is_inside_the_page_or_a_file_beside_it():
    root = page()
    ids = [element.attrs["id"] for element in all_elements(root) if "id" in element.attrs]
    assert len(ids) == len(set(ids))
    links = [
        element.attrs[name]
        for element in all_elements(root)
        for name in ("href", "src", "action", "poster")
        if element.attrs.get(name)
    ]
    assert len(links) > 50
    for link in links:
        if link.startswith("#"):
            assert unquote(link[1:]) in ids
        elif not link.startswith("data:"):
            assert (PATHS.results / unquote(link)).is_file(), link
    styles = "".join(element.text for element in root.find("style"))
    assert "url(" not in styles
    assert "@import" not in styles


def all_elements(element: Element) -> list[Element]:
    return [element, *(inner for child in element.inside for inner in all_elements(child))]


def test_what_files_say_is_text_and_not_part_of_the_page():
    root = page()
    captions = [caption.text for caption in root.find("figcaption") if "alert(1)" in caption.text]
    assert len(captions) == 3
    assert all(NASTY.replace("`", "") in caption for caption in captions)
    assert not [script for script in root.find("script") if "alert(1)" in script.text]
    assert not any(element.tag == "b" and "50 %" in element.text for element in all_elements(root))


def test_figures_are_the_published_vectors_with_their_captions():
    found = {
        figure.attrs["id"].removeprefix("figure-"): figure
        for figure in page().find("figure", **{"class": "picture"})
    }
    files = {file.name.removesuffix(".svg"): file for file in PATHS.figures.glob("*.svg")}
    assert found.keys() == files.keys()
    for name, file in files.items():
        (image,) = found[name].find("img")
        kind, _, body = image.attrs["src"].partition(",")
        assert kind == "data:image/svg+xml;charset=utf-8"
        assert image.attrs["alt"] == file.with_name(f"{name}.md").read_text().strip()
        shown, published = (ElementTree.fromstring(text) for text in (unquote(body), file.read_text()))
        for one, other in zip(shown.iter(), published.iter(), strict=True):
            assert one.tag == other.tag
            assert (one.text or "").split() == (other.text or "").split()
            assert one.attrib.keys() == other.attrib.keys()
            assert all(one.attrib[key].split() == value.split() for key, value in other.attrib.items())


def test_tables_have_every_digit_of_their_files_and_are_rounded_to_be_read():
    found = {
        figure.attrs["id"].removeprefix("table-"): figure
        for figure in page().find("figure", **{"class": "table"})
    }
    files = {file.name.removesuffix(".csv"): file for file in PATHS.tables.glob("*.csv")}
    assert found.keys() == files.keys()
    for name, file in files.items():
        columns, *lines = csv.reader(io.StringIO(file.read_text()))
        heads = [head.text for head in found[name].find("th")]
        places = [heads.index(column) for column in columns]
        shown = [[row[place] for place in places] for row in rows_of(found[name])]
        assert [[cell.attrs.get("title") or cell.text for cell in row] for row in shown] == lines
        for cell in (cell for row in shown for cell in row if "title" in cell.attrs):
            assert abs(float(cell.text) - float(cell.attrs["title"])) <= max(
                0.005001, 0.05 * abs(float(cell.text))
            )
    assert [head.text for head in found["05_results-claims"].find("th")][:3] == ["claim", "runs", "verdict"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1.67309", "1.67"),
        ("-0.261419", "-0.26"),
        ("0.0004321", "0.00043"),
        ("1e-05", "1e-05"),
        ("0.5", "0.5"),
        ("272186", "272186"),
        ("0", "0"),
        ("−3.14159", "-3.14"),
        ("85.52 ± 4.84", "85.52 ± 4.84"),
        ("1, 5, 7", "1, 5, 7"),
        ("", ""),
        ("nan", "nan"),
    ],
)
def test_numbers_are_rounded_and_nothing_else(text, shown):
    cell = rounded(text)
    assert cell.text == shown
    assert cell.full == (text if shown != text else "")


def test_a_mean_is_that_of_the_records_which_its_row_links():
    (table,) = page().find("figure", id="table-03_distillation")
    for arm, runs, mean, _, n, *_ in rows_of(table):
        found = accuracies(runs)
        assert len(runs.find("a")) == int(n.text) == 2
        assert plain.mean(found.values()) == pytest.approx(
            float(mean.attrs.get("title") or mean.text), abs=1e-4
        ), arm.text
    (grid,) = page().find("figure", id="table-05_results-accuracy")
    for _, runs, at in rows_of(grid):
        assert f"{plain.mean(accuracies(runs).values()):.2f}" == at.text.split(" ± ")[0]


def test_the_runs_that_a_claim_leads_to_give_its_number():
    root = page()
    (table,), (runs,) = root.find("figure", id="table-05_results-claims"), root.find("table", id="runs")
    everything = [
        [cell.text for cell in row[:3]]
        + [int(row[3].text), float(row[4].attrs["title"]), row[5].find("a")[0]]
        for row in rows_of(runs)
    ]
    assert len(everything) == len(results_frame(small_profile()))
    for *_, accuracy, link in everything:
        assert (
            json.loads((PATHS.results / unquote(link.attrs["href"])).read_text())["metrics"]["accuracy"]
            == accuracy
        )
    judged = rows_of(table)
    assert len(judged) == 5
    for row in judged:
        wanted = json.loads(row[1].find("a")[0].attrs["data-shown"])
        shown = [
            run
            for run in everything
            if run[0] in wanted["pair"] and run[1] in wanted["method"] and run[2] in wanted["arm"]
        ]
        per_seed = []
        for seed in (0, 1):
            sides = [
                [run[4] for run in shown if run[3] == seed and run[2].startswith("pursuhint-") == paper]
                for paper in (True, False)
            ]
            per_seed.append(plain.mean(sides[0]) - plain.mean(sides[1]))
        assert plain.mean(per_seed) == pytest.approx(
            float(row[3].attrs.get("title") or row[3].text), abs=1e-4
        ), row[0].text


def test_the_layer_map_holds_what_the_hints_say():
    (script,) = page().find("script", id="layer-map-data")
    data = json.loads(script.text)
    assert [teacher["name"] for teacher in data["teachers"]] == ["resnet14", "resnet20"]
    teacher = data["teachers"][0]
    assert teacher["ks"] == [2, 3, 4, 5, 6]
    stored = unsealed(json.loads(PATHS.hint_points("resnet14", 3).read_text()))
    for arm in set(ARMS) - {"none"}:
        selector, metric = ("pursuhint-", "cka-linear") if arm.startswith("pursuhint-") else (arm, "")
        choice = teacher["choices"][selector][metric][1]
        assert choice["points"] == stored[arm]["sub_blocks"]
        assert choice["clusters"] == stored[arm].get("clusters", [])
        assert stored[arm]["reason"] in choice["text"]
    matrix = json.loads(PATHS.similarity("resnet14").read_text())["similarity"]["r2"]
    assert teacher["similarity"]["r2"] == pytest.approx([value for row in matrix for value in row], abs=5e-4)
    # All six sub-blocks can be drawn in one way only.
    assert teacher["choices"]["random-2"][""][4] == {
        "points": [],
        "clusters": [],
        "text": teacher["choices"]["random-2"][""][4]["text"],
    }
    assert "random-2 cannot give 6 points here" in teacher["choices"]["random-2"][""][4]["text"]


# ---- when it is made


def test_the_same_files_give_the_same_bytes_and_nothing_is_written_twice():
    profile = small_profile()
    steps, content, written = (
        make_plan(profile, "smoke"),
        PATHS.report.read_bytes(),
        PATHS.report.stat().st_mtime_ns,
    )
    assert write_report(profile, steps).stat().st_mtime_ns == written
    PATHS.report.unlink()
    assert write_report(profile, steps).read_bytes() == content


@pytest.mark.parametrize("change", ["caption", "record", "template"])
def test_it_is_made_again_when_something_has_changed(change, tmp_path, monkeypatch):
    profile = small_profile()
    steps, content = make_plan(profile, "smoke"), PATHS.report.read_bytes()
    path = {
        "caption": PATHS.tables / "05_results-claims.md",
        "record": next(PATHS.records.glob("*_at_*")),
    }.get(change)
    if change == "template":
        folder = Path(shutil.copytree(report_module.TEMPLATES, tmp_path / "templates"))
        monkeypatch.setattr(report_module, "TEMPLATES", folder)
        with (folder / "report.css").open("a") as style:
            style.write("/* changed */")
    before = path.read_bytes() if path else b""
    try:
        if change == "caption":
            path.write_bytes(before.replace(b"The claims.", b"The claims and no others."))
        elif change == "record":
            other = unsealed(json.loads(before))
            other["metrics"]["accuracy"] = 12.345
            path.write_text(json.dumps(sealed(other)))
        write_report(profile, steps)
        text = PATHS.report.read_text()
        assert {"caption": "The claims and no others.", "record": "12.345", "template": "/* changed */"}[
            change
        ] in text
    finally:
        if path:
            path.write_bytes(before)
        PATHS.report.write_bytes(content)


DAMAGES = {
    "table cut": ("tables/05_results-claims.csv", lambda text: text[:-30]),
    "zeros": ("tables/05_results-claims.csv", lambda text: "\0" * 99),
    "table empty": ("tables/05_results-claims.csv", lambda text: ""),
    "caption empty": ("tables/05_results-claims.md", lambda text: "\n"),
    "caption gone": ("figures/02_hint_points-resnet14-3-one.md", None),
    "figure cut": ("figures/05_results-claims.svg", lambda text: text[:-9]),
    "no figure": ("figures/05_results-claims.svg", lambda _: "<svg/>"),
    "no text": ("figures/05_results-claims.svg", lambda _: b"\xff\xfe"),
    "hints": ("hints/resnet14-similarity.json", lambda text: text.replace("0.", "1.", 1)),
    "record": ("records/*_at_*.json", lambda text: text[:-9]),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named_in_one_line_and_the_old_page_stays(name, damage):
    profile = small_profile()
    path = sorted(PATHS.results.glob(name))[0]
    steps, content, page_before = make_plan(profile, "smoke"), path.read_bytes(), PATHS.report.read_bytes()
    path.unlink()
    if damage:
        spoilt = damage(content.decode())
        path.write_bytes(spoilt if isinstance(spoilt, bytes) else spoilt.encode())
    try:
        with pytest.raises(SettingsError) as caught:
            write_report(profile, steps)
    finally:
        path.write_bytes(content)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "delete" in str(caught.value)
    assert PATHS.report.read_bytes() == page_before
    assert not list(PATHS.results.glob("*.tmp"))


def test_a_profile_that_has_not_run_gets_a_page_that_says_so(tmp_path, monkeypatch):
    use(tmp_path, monkeypatch)
    profile = small_profile()
    text = write_report(profile, make_plan(profile, "smoke")).read_text()
    assert len(text) < 200_000, "without a map there is no need of Bokeh"
    for said in (
        "Nothing of this profile has been run yet.",
        "No teacher of this profile has been compared",
        "No run of this profile has a record yet",
    ):
        assert said in text
    assert text.count("Not run yet.") == len(make_plan(profile, "smoke"))


def test_checksums_leave_the_report_out():
    write_sums(PATHS.results)
    sums = PATHS.results / "SHA256SUMS"
    try:
        assert "tables/05_results-claims.csv" in sums.read_text()
        assert "report" not in sums.read_text()
    finally:
        sums.unlink()


def test_a_run_ends_with_the_path_of_the_report(capsys):
    profile = small_profile()
    PATHS.report.unlink()
    conclude(profile, make_plan(profile, "smoke"), 1.0)
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(PATHS.report))
    assert PATHS.report.is_file()
    (PATHS.results / "SHA256SUMS").unlink()
