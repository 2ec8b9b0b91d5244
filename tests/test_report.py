"""The report: one page that says what the published files and the records say, and needs nothing else."""

import csv
import io
import json
import statistics as plain
from itertools import chain
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from report_study import ARMS, NASTY, PAIR, PATHS, Element, make_study, page, rows_of, small_profile, use

from pursuhint_lib.files import sealed, unsealed
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.statistics import PURSUHINT, REFERENCES
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.grid.cells import results_frame
from pursuhint_lib.study.publish import page as page_module
from pursuhint_lib.study.publish.report import conclude, write_report
from pursuhint_lib.study.publish.verify import write_sums


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a small study and its report, which every test leaves as it was."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(autouse=True)
def in_its_folder(own_folders, study, monkeypatch):
    use(study, monkeypatch)


def accuracies(cell: Element) -> dict[str, float]:
    """Hash → accuracy in the records that a cell names, read by hand."""
    found = {}
    for name in cell.find("details")[0].attrs["data-runs"].split():
        (file,) = PATHS.records.glob(f"*_{name}.json")
        found[name] = json.loads(file.read_text())["metrics"]["accuracy"]
    return found


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


def test_the_index_is_small_has_no_script_and_only_points_to_what_is_there():
    root = page("index")
    assert root.find("script") == []
    assert PATHS.index.stat().st_size < 30_000
    links = [e.attrs[name] for e in all_elements(root) for name in ("href", "src") if name in e.attrs]
    assert len(links) > 10
    ids = [element.attrs["id"] for element in all_elements(root) if "id" in element.attrs]
    for link in links:
        if link.startswith("#"):
            assert unquote(link[1:]) in ids
        elif link != "data:,":
            assert (PATHS.results / unquote(link)).is_file(), link
    pictures = [image.attrs["src"] for image in root.find("img")]
    assert pictures[0] == "figures/05_results-effects.svg", "the answer comes first"
    assert len(pictures) == len(set(pictures)) == len(page().find("img"))
    questions = [text.text for text in root.find("p", **{"class": "question"})]
    assert questions == [text.text for text in page().find("p", **{"class": "question"})]


def test_a_note_leads_to_the_pages_of_the_project(monkeypatch, tmp_path):
    notes = tmp_path / "smoke.md"
    notes.write_text(
        "## answer\nSee [it](docs/protocol.md), [this](#summary) or [that](https://example.org).\n"
    )
    monkeypatch.setattr("pursuhint_lib.study.grid.notes.notes_file", lambda profile: notes)
    profile, old = small_profile(), PATHS.report.read_bytes()
    found = write_report(profile, make_plan(profile, "smoke")).read_text()
    PATHS.report.write_bytes(old)
    for link in ("../../docs/protocol.md", "#summary", "https://example.org"):
        assert f'<a href="{link}">' in found


@pytest.mark.parametrize(("name", "count"), [("report", 3), ("index", 2)])
def test_what_files_say_is_text_and_not_part_of_the_page(name, count):
    root = page(name)
    captions = [caption.text for caption in root.find("figcaption") if "alert(1)" in caption.text]
    assert len(captions) == count
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
        caption = file.with_name(f"{name}.md").read_text().strip()
        assert image.attrs["alt"] == (f"alt: {NASTY}" if name == "05_results-effects" else caption)
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
        for cell, line in zip(chain(*shown), chain(*lines), strict=True):
            full = cell.attrs.get("title") or cell.text
            assert full == line or float(full) == float(line)
            if "title" in cell.attrs:
                assert abs(float(cell.text) - float(full)) <= max(0.005001, 0.05 * abs(float(cell.text)))


@pytest.mark.parametrize(
    ("value", "shown", "full"),
    [
        (1.67309, "1.67", "1.67309"),
        (-0.2614194, "-0.26", "-0.261419"),
        (0.0004321, "0.00043", "0.0004321"),
        (1e-5, "1e-05", ""),
        (0.5, "0.50", ""),
        (0.0, "0.00", ""),
        (272186, "272186", ""),
        ("85.52 ± 4.84", "85.52 ± 4.84", ""),
        ("1, 5, 7", "1, 5, 7", ""),
        (float("nan"), "", ""),
    ],
)
def test_numbers_are_rounded_and_nothing_else(value, shown, full):
    assert page_module._cell(value, 2) == (shown, full)


def test_parts_of_a_step_stand_in_the_order_of_their_publication():
    wanted = [f"table-05_results-{name}" for name in (f"accuracy-{PAIR}", "stage-ends", "effects")]
    content = unsealed(json.loads(PATHS.fragments("05_results").read_text()))
    assert [*content] == [*wanted, "picture-05_results-effects"]
    ids = [element.attrs.get("id") for element in all_elements(page())]
    assert ids.index(wanted[0]) < ids.index(wanted[1])
    assert ids.index("table-05_results-effects") < ids.index("layer-map") < ids.index(wanted[0])
    pictures = [name for name in ids if name and name.startswith("figure-02")]
    assert pictures == [f"figure-02_hint_points-resnet14-3-{name}" for name in ("one", "two")]


def test_a_mean_is_that_of_the_records_which_its_row_links():
    (table,) = page().find("figure", id="table-03_distillation")
    for arm, runs, mean, _, n, *_ in rows_of(table):
        found = accuracies(runs)
        assert len(found) == int(n.text) == int(runs.text) == 2
        assert plain.mean(found.values()) == pytest.approx(
            float(mean.attrs.get("title") or mean.text), abs=1e-4
        ), arm.text
    (grid,) = page().find("figure", id="table-05_results-accuracy")
    for _, runs, at in rows_of(grid):
        assert f"{plain.mean(accuracies(runs).values()):.2f}" == at.text.split(" ± ")[0]


def test_the_runs_of_an_effect_give_its_number():
    root = page()
    (table,), (runs,) = root.find("figure", id="table-05_results-effects"), root.find("table", id="runs")
    frame = results_frame(small_profile())
    everything = rows_of(runs)
    assert len(everything) == len(frame)
    listed = {}
    for *_, arm, seed, accuracy, record in everything:
        (link,) = record.find("a")
        stored = json.loads((PATHS.results / unquote(link.attrs["href"])).read_text())
        assert stored["metrics"]["accuracy"] == float(accuracy.attrs["title"])
        listed.setdefault(link.text, []).append((arm.text, int(seed.text)))
    judged = rows_of(table)
    assert len(judged) == 4
    for row in judged:
        sides = {PURSUHINT: [], REFERENCES[row[0].text]: []}
        for name, accuracy in accuracies(row[1]).items():
            for family, found in sides.items():
                # Two arms that take the same layers are one run, which stands on both sides.
                if any(arm.startswith(family) for arm, _ in listed[name]):
                    found.append(accuracy)
        # Each side has as many runs of either seed.
        ours, theirs = map(plain.mean, sides.values())
        assert ours - theirs == pytest.approx(float(row[4].attrs.get("title") or row[4].text or 0), abs=1e-4)


def test_records_are_known_by_their_hashes():
    (script,) = page().find("script", id="accuracies")
    known = json.loads(script.text)
    assert len(known) == len(list(PATHS.records.glob("*.json"))) > 10
    for name, (record, accuracy) in known.items():
        content = json.loads((PATHS.records / f"{record}.json").read_text())
        assert record.endswith(f"_{name}")
        assert accuracy == f"{content['metrics']['accuracy']:.2f}"


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
    assert "random-2 cannot give 6 hint layers here" in teacher["choices"]["random-2"][""][4]["text"]


# ---- how it is made


def test_the_same_files_give_the_same_bytes_and_others_another_page():
    profile = small_profile()
    steps, content = make_plan(profile, "smoke"), PATHS.report.read_bytes()
    path = PATHS.fragments("05_results")
    before = path.read_bytes()
    assert write_report(profile, steps).read_bytes() == content
    parts = {
        key: html.replace("The effects.", "No others.") for key, html in unsealed(json.loads(before)).items()
    }
    try:
        path.write_text(json.dumps(sealed(parts)))
        assert "No others." in write_report(profile, steps).read_text()
    finally:
        path.write_bytes(before)
        PATHS.report.write_bytes(content)


DAMAGES = {
    "fragments cut": ("fragments/05_results.json", lambda text: text[:-30]),
    "zeros": ("fragments/05_results.json", lambda text: "\0" * 99),
    "fragments edited": ("fragments/05_results.json", lambda text: text.replace("The effects", "No effects")),
    "figure gone": ("figures/02_hint_points-resnet14-3-one.svg", None),
    "figure cut": ("figures/05_results-effects.svg", lambda text: text[:-9]),
    "no figure": ("figures/05_results-effects.svg", lambda _: "<svg/>"),
    "no text": ("figures/05_results-effects.svg", lambda _: b"\xff\xfe"),
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
        assert "tables/05_results-effects.csv" in sums.read_text()
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
