"""The README's flags, paths, numbers and examples are those of the code, and its tables those of profiles,
notebooks and results.
"""

import json
import re
import tomllib
from dataclasses import replace

import pytest
import yaml

from pursuhint_lib.cli import main
from pursuhint_lib.distillers import DISTILLERS
from pursuhint_lib.models import MODELS
from pursuhint_lib.paths import CONFIG, NOTEBOOKS, ROOT, StudyPaths
from pursuhint_lib.settings import Pair, Profile, SettingsError, build
from pursuhint_lib.study.engine.validate import validate
from pursuhint_lib.study.grid import notes
from pursuhint_lib.study.grid.cells import run_cell
from pursuhint_lib.study.grid.profiles import checked, load_profile
from pursuhint_lib.study.publish import readme
from pursuhint_lib.study.publish.page import Page
from pursuhint_lib.study.publish.verify import sums_file

README = (ROOT / "README.md").read_text()


@pytest.fixture
def committed(monkeypatch):
    """The committed results, in place of a test's own."""
    monkeypatch.setenv("PURSUHINT_RESULTS", str(ROOT / "results"))


def block(name: str) -> str:
    return re.search(f"<!-- {name} -->\n(.*?)<!-- end of {name} -->", README, flags=re.S)[1]


def written() -> str:
    """The README without what is generated, code and links."""
    text = README
    for pattern in (r"<!-- (\w+) -->.*?<!-- end of \1 -->", r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)"):
        text = re.sub(pattern, " ", text, flags=re.S)
    return text


def test_flags_are_those_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    used = set(
        re.findall(
            r"run_all\.sh[^`\n|]*?(--[a-z][a-z-]+)", README.replace(" -- ", "\0").replace("\0", " \n ")
        )
    )
    assert used == known


def test_every_number_in_the_prose_is_that_of_its_source():
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(
        ">="
    )
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"][0]["url"].rpartition("/")[2]
    size = re.search(
        r"once; some (\d+) GB, mostly PyTorch; one minute to a few",
        (ROOT / "workflow" / "environment.sh").read_text(),
    )[1]
    assert set(re.findall(r"\d[\d.,]*\d|\d", written())) == {python, paper, size}


def test_every_path_in_the_overview_exists():
    (overview,) = re.findall(r"## What is where\n\n```\n(.*?)```", README, flags=re.S)
    library = "pursuhint_lib/"
    for line in overview.splitlines():
        for name in re.sub(r"<[a-z]+>/", "", line[:30]).split():
            inside = line.startswith(" ")
            found = (ROOT / library / name, ROOT / library / f"{name}.py") if inside else (ROOT / name,)
            assert any(path.exists() for path in found) or name in ("work/", "data/"), name
    named = set(overview.replace("/", " ").split())
    assert {
        path.stem
        for path in (ROOT / library).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"} <= named


def test_the_example_profile_can_be_run():
    (example,) = re.findall(r"```yaml\n(# my_pair\.yaml.*?)```", README, flags=re.S)
    profile = checked(build(Profile, yaml.safe_load(example), "my_pair.yaml"))
    assert profile.pairs[0].k == 3


def test_the_example_method_and_network_train(monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    # What the example adds to the tables is taken out again after the test.
    monkeypatch.setitem(DISTILLERS, "embedded-mse", None)
    monkeypatch.setitem(MODELS, "resnet26x0.5", None)
    exec(example, {})
    pair, methods = Pair("resnet14", "resnet26x0.5"), ("embedded-mse", "at+embedded-mse")
    changes = {
        "pairs": (pair,),
        "methods": methods,
        "arms": ("none", "stage-ends"),
        "seeds": (0,),
        "example_pair": None,
    }
    profile = checked(replace(load_profile("smoke"), **changes))
    assert [finding.state for finding in validate(profile)] == ["ok"]
    for method in profile.methods:
        found = run_cell(profile, profile.pairs[0], method)
        assert found["stage-ends"][0].status == "ok"


@pytest.mark.parametrize("page", readme.pages(), ids=lambda page: page.name)
def test_what_is_generated_is_up_to_date(committed, page):
    if not StudyPaths("quick").numbers("05_results").is_file():
        pytest.skip("the results are not drawn again yet with the numbers of the answer")
    assert readme.filled(page.read_text()) == page.read_text(), "run python -m pursuhint_lib docs"


def test_the_pages_with_generated_parts_are_found():
    assert {page.name for page in readme.pages()} == {
        "ANSWERS.md",
        "README.md",
        "forking.md",
        "reproducing.md",
    }


def test_every_profile_and_notebook_has_its_row():
    costs = re.findall(
        r"^\| `([\w-]+)` \|.*? \| ([\d,]+) \|", (ROOT / "docs" / "reproducing.md").read_text(), flags=re.M
    )
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| (.+?) \|$", block("profiles"), flags=re.M)
    assert {name for name, _ in rows} == {file.stem for file in CONFIG.glob("*.yaml")}
    for name, on_record in rows:
        files = [
            *(ROOT / "results" / name).glob("records/*.json"),
            *(ROOT / "results" / name).glob("alone/records/*.json"),
        ]
        if on_record != "–":
            minutes = sum(json.loads(file.read_text())["provenance"]["seconds"] for file in files) / 60
            assert on_record in (
                f"{len(files):,} trainings, {minutes:.0f} min",
                f"{len(files):,} trainings, {minutes / 60:.1f} h",
            )
            assert sum(int(count.replace(",", "")) for profile, count in costs if profile == name) == len(
                files
            )
    assert re.findall(r"^\| \[`(\w+)`\]", block("notebooks"), flags=re.M) == sorted(
        file.stem for file in NOTEBOOKS.glob("*.ipynb")
    )


def results_of(folder, name: str, gain: float, over: bool = True) -> None:
    """The least that makes results: a number and, when the run is over, checksums; and a note on it."""
    page = Page(load_profile(name), "05_results")
    page.number("at", "{:+.2f} pp", gain)
    page.paths.figures.mkdir(parents=True, exist_ok=True)
    if figure := readme.ANSWERS.get(name):
        (page.paths.figures / f"{figure}.md").write_text(f"A caption of {name}. It says more.\n")
    file = folder / "notes" / f"{name}.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text("## answer\n\nIt is {05_results:at}.\n")
    notes.stamp(name, ["answer"])
    if over:
        sums_file(page.paths.results).write_text("")


def test_the_answer_is_of_every_study_that_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "notes_file", lambda profile: tmp_path / "notes" / f"{profile}.md")
    with pytest.raises(SettingsError, match="no finished profile has a note with a section answer"):
        readme.answer()
    results_of(tmp_path, "quick", 0.5)
    results_of(tmp_path, "smoke", 1.0)
    results_of(tmp_path, "cifar100", 1.5, over=False)
    title, *answer = readme.answer().split("\n\n")
    assert title.startswith("**Handwritten digits")
    assert answer == ["It is +0.50 pp."]
    results_of(tmp_path, "cifar100-lite", 2.0)
    title, *answer = readme.answer().split("\n\n")
    assert "([`cifar100-lite`](config/cifar100-lite.yaml), [every difference](results/cifar" in title
    assert answer[:3] == [
        "It is +2.00 pp.",
        "![A caption of cifar100-lite](results/cifar100-lite/figures/05_results-effects.png)",
        "*A caption of cifar100-lite. It says more.*",
    ]
    assert answer[-1] == "It is +0.50 pp."
    results_of(tmp_path, "cifar100-sets", 3.0)
    title, *answer = readme.answer().split("\n\n")
    assert title.startswith("**CIFAR-100, short schedule, every set of one layer per stage**")
    assert answer[0] == "It is +3.00 pp."
    assert "results/cifar100-sets/figures/13_population-resnet20-resnet8-ranks.png" in answer[1]
    Page(load_profile("quick"), "05_results").number("at", "{:+.2f} pp", 0.6)
    with pytest.raises(SettingsError, match=r"section answer of .*quick\.md was written for other numbers"):
        readme.answer()


def test_the_trial_is_what_git_ignores():
    ignored = re.findall(r"^/?results/([\w-]+)/$", (ROOT / ".gitignore").read_text(), flags=re.M)
    assert ignored == [readme.TRIAL]


def test_a_block_that_does_not_exist_or_end_is_refused():
    assert readme.filled("no block") == "no block"
    once = readme.filled("a\n<!-- profiles -->\n<!-- end of profiles -->\nb\n")
    assert once.startswith("a\n<!-- profiles -->\n| profile |")
    assert readme.filled(once) == once
    with pytest.raises(
        SettingsError, match=r"unknown block of a page 'profile' \(did you mean 'profiles'\?\)"
    ):
        readme.filled("<!-- profile -->\n<!-- end of profile -->\n")
    with pytest.raises(SettingsError, match="a block of the page has no end, or no beginning"):
        readme.filled("<!-- profiles -->\n")
