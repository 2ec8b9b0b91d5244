"""What a person has written of results: numbers are filled in by name, and a text that was written for other
numbers is marked, and refused.
"""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest

from pursuhint_lib import paths
from pursuhint_lib.files import unsealed
from pursuhint_lib.paths import CONFIG, NOTEBOOKS, ROOT, StudyPaths
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.grid import notes
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish.page import Page

TEXT = """# Notes on smoke

## answer

AT gains {05_results:at}, over {05_results:seeds} seeds; {10_deepest_point:at-deepest} of it by one layer.

## 05_results
<!-- written for 0123456789ab -->

It gains {at}.
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Notes of the smoke profile, and numbers of two steps."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(notes, "notes_file", lambda profile: tmp_path / "notes" / f"{profile}.md")
    file = notes.notes_file("smoke")
    file.parent.mkdir()
    file.write_text(TEXT)
    publish(1.96999999999)
    Page(load_profile("smoke"), "10_deepest_point").number("at-deepest", "{:.1f} pp", 0.25)
    return file


def publish(gain: float, cell: float = 0.5) -> None:
    page = Page(load_profile("smoke"), "05_results")
    page.interval("at", SimpleNamespace(mean=gain, low=1.064, high=2.876))
    page.number("seeds", "{:d}", 5)
    page.table(pd.DataFrame({"x": [cell]}), "one", "A table.")


def test_numbers_are_published_settled_with_their_text_and_tables_with_their_checksum(written):
    content = json.loads(StudyPaths("smoke").numbers("05_results").read_text())
    assert unsealed(content).keys() == {"at", "seeds", "table one"}
    assert content["at"] == {"text": "+1.97 pp [1.06, 2.88]", "values": [1.97, 1.064, 2.876]}
    assert content["seeds"] == {"text": "5", "values": [5]}
    alone = SimpleNamespace(mean=-0.456, low=-math.inf, high=math.inf)
    assert Page(load_profile("smoke"), "05_results").interval("one-seed", alone) == "-0.46 pp, no interval"
    with pytest.raises(ValueError, match="'a b' cannot name a number; give letters"):
        Page(load_profile("smoke"), "05_results").number("a b", "{}", 1)
    assert not StudyPaths("smoke").numbers("05_results").is_file(), "nothing is left of what stood there"


def test_a_section_is_filled_with_the_numbers_that_it_names(written):
    assert notes.filled("smoke", "05_results") == "It gains +1.97 pp [1.06, 2.88]."
    assert notes.filled("smoke", "answer") == (
        "AT gains +1.97 pp [1.06, 2.88], over 5 seeds; 0.2 pp of it by one layer."
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{at}", "{att}", r"unknown number of 05_results 'att' \(did you mean 'at'\?\)"),
        ("{at}", "{table one}", None),
        (
            "{at}",
            "{10_deepest_point:at-deepest}",
            "section 05_results names {10_deepest_point:at-deepest}; only",
        ),
        ("05_results\n", "03_distillation\n", "03_distillation of smoke has published no numbers; run"),
    ],
)
def test_what_is_not_published_cannot_be_named(written, old, new, message):
    written.write_text(written.read_text().replace(old, new))
    section = "03_distillation" if "03" in new else "05_results"
    if message is None:
        assert notes.filled("smoke", section) == "It gains {table one}."
        return
    with pytest.raises(SettingsError, match=message):
        notes.filled("smoke", section)
    assert notes.shown_note("smoke", section).startswith("**To be read again:** ")


@pytest.mark.parametrize(("gain", "cell"), [(1.98, 0.5), (1.97, 0.51)], ids=["number", "table"])
def test_a_text_is_stale_until_it_is_stamped_and_again_when_a_result_changes(written, gain, cell):
    with pytest.raises(
        SettingsError, match=r"section 05_results of notes/smoke\.md was written for other numbers"
    ):
        notes.current("smoke", "05_results")
    assert notes.shown_note("smoke", "05_results").startswith(
        "**To be read again:** section 05_results of notes/"
    )
    assert notes.shown_note("smoke", "05_results").endswith("\n\nIt gains {at}.")
    notes.stamp("smoke", ["answer", "05_results"])
    assert written.read_text().count("<!-- written for ") == 2
    assert notes.shown_note("smoke", "05_results") == "It gains +1.97 pp [1.06, 2.88]."
    publish(1.97)
    assert notes.current("smoke", "answer")
    publish(gain, cell)
    for section in ("answer", "05_results"):
        with pytest.raises(SettingsError, match="was written for other numbers"):
            notes.current("smoke", section)


def test_stamping_changes_the_heads_that_are_named_and_nothing_else(written):
    notes.stamp("smoke", ["answer"])
    head, stamp, *rest = written.read_text().split("\n", 4)[2:]
    assert (head, stamp) == ("## answer", f"<!-- written for {notes.checksum('smoke', 'answer')} -->")
    assert rest[0] == TEXT.split("\n", 4)[4].lstrip("\n")
    before = written.read_text()
    notes.stamp("smoke", ["answer"])
    assert written.read_text() == before
    with pytest.raises(SettingsError, match="unknown section of the notes on smoke 'answers'"):
        notes.stamp("smoke", ["answers"])
    written.write_text(before.replace("{05_results:at}", "{05_results:att}"))
    with pytest.raises(SettingsError, match="unknown number"):
        notes.stamp("smoke", ["answer"])


def test_the_notes_on_the_protocol_name_numbers_of_several_profiles(written):
    named = "{smoke/05_results:at} by {smoke/10_deepest_point:at-deepest}"
    file = written.with_name("protocol.md")
    file.write_text(f"## answer\n\n{named}, and {{quick/05_results:at}}.\n")
    with pytest.raises(SettingsError, match=r"quick/05_results of protocol has .* run ./run_all.sh quick"):
        notes.current("protocol", "answer")
    file.write_text(f"## answer\n\n{named}.\n")
    notes.stamp("protocol", ["answer"])
    assert notes.current("protocol", "answer") == "+1.97 pp [1.06, 2.88] by 0.2 pp."
    publish(1.98)
    with pytest.raises(SettingsError, match="was written for other numbers"):
        notes.current("protocol", "answer")


def test_without_a_note_the_numbers_are_listed_and_where_a_note_would_stand(written):
    written.unlink()
    shown = notes.shown_note("smoke", "05_results").splitlines()
    assert shown[0] == (
        "*Nobody has written about these results yet. `notes/smoke.md` takes it, under `## 05_results`.*"
    )
    assert [line for line in shown if line.startswith("- ")] == [
        "- `{at}`: +1.97 pp [1.06, 2.88]",
        "- `{seeds}`: 5",
    ]
    assert notes.shown_note("smoke", "08_export").startswith("*Nobody has written")


COMMITTED = [
    (file.stem, name)
    for file in sorted((CONFIG / "notes").glob("*.md"))
    for name in notes.read_notes(file.stem)
]


@pytest.mark.parametrize(("profile", "section"), COMMITTED, ids="-".join)
def test_committed_notes_were_read_beside_the_committed_results(profile, section, monkeypatch):
    monkeypatch.setenv("PURSUHINT_RESULTS", str(ROOT / "results"))
    assert section == "answer" or any(section.startswith(file.stem) for file in NOTEBOOKS.glob("*.ipynb"))
    if profile != "protocol" and not StudyPaths(profile).numbers("05_results").is_file():
        pytest.skip("the results are not drawn again yet with their numbers")
    assert notes.current(profile, section)
