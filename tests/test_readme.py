"""The README's flags, paths, numbers and examples are those of the code, and its tables those of profiles,
notebooks and results.
"""

import json
import re
import tomllib
from dataclasses import replace

import pandas as pd
import pytest
import yaml

from pursuhint_lib.cli import main
from pursuhint_lib.distillers import DISTILLERS
from pursuhint_lib.models import MODELS
from pursuhint_lib.paths import CONFIG, NOTEBOOKS, ROOT
from pursuhint_lib.settings import Pair, Profile, SettingsError, build
from pursuhint_lib.statistics import CLAIMS
from pursuhint_lib.study.engine.validate import validate
from pursuhint_lib.study.grid.cells import run_cell
from pursuhint_lib.study.grid.profiles import checked, load_profile
from pursuhint_lib.study.publish import readme

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
        r"once; some (\d+) GB, mostly PyTorch; a few minutes",
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


def test_what_is_generated_is_up_to_date(committed):
    assert {page.name for page in readme.pages()} == {"README.md", "reproducing.md"}
    for page in readme.pages():
        assert readme.filled(page.read_text()) == page.read_text(), (
            "run python -m pursuhint_lib docs"
        )


def test_the_answer_is_that_of_the_committed_table():
    (name,) = re.findall(r"in the profile \[`([\w-]+)`\]", block("answer"))
    tables = ROOT / "results" / name / "tables"
    table = (tables / "05_results-claims.md").read_text()
    assert table[table.index("|") :].strip() in block("answer")
    verdicts = list(pd.read_csv(tables / "05_results-claims.csv")["verdict"])
    said = ", ".join(
        f"{verdicts.count(verdict)} {verdict}" for verdict in ("reproduced", "not reproduced", "undecided")
    )
    assert f"**Of {len(verdicts)} claims: {said}**" in block("answer")
    assert f"results/{name}/figures/05_results-claims.png" in block("answer")
    # "The rows above it … those below it": the order that the text speaks of.
    assert [claim.reference for claim in CLAIMS] == [
        "alone",
        "none",
        "stage-ends",
        "random-",
        "segment-middles",
    ]


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


def results_of(folder, name: str, verdict: str, over: bool = True) -> None:
    """The least that makes results: a table of claims and, when the run is over, checksums."""
    tables = folder / "results" / name / "tables"
    tables.mkdir(parents=True)
    row = {"claim": CLAIMS[2].text, "mean": 1.5, "low": 1.0, "high": 2.0, "n": 5, "verdict": verdict}
    pd.DataFrame([row]).to_csv(tables / "05_results-claims.csv", index=False)
    methods = {
        "compared": ["minus the stage ends"] * 2 + ["minus the mean of the random arms"],
        "method": ["AT", "FitNet", "AT"],
    }
    pd.DataFrame(methods | {"mean": [1.0, 2.0, 3.0], "low": 0.5, "high": 3.5, "n": [5, 3, 5]}).to_csv(
        tables / "05_results-methods.csv", index=False
    )
    spread = {"arms asked": ["all", "random"], "arms": [9, 4], "spread": [2.0, 1.234], "chance": [0.5, 0.6]}
    pd.DataFrame(spread).to_csv(tables / "05_results-choices-spread.csv", index=False)
    scores = {
        "method": ["AT", "AT", "SP"],
        "score": ["depth", "coverage, r2", "depth"],
        "rho": [0.8, -0.91, 0.99],
        "p_holm": [0.01, 0.01, 0.05],
    }
    pd.DataFrame(scores).to_csv(tables / "05_results-scores-methods.csv", index=False)
    points = ["the deepest", "the others", "the deepest"]
    shares = {
        "method": ["AT", "AT", "SP"],
        "points": points,
        "mean": [-2.5, 0.1, 3.0],
        "low": -4.0,
        "high": 4.0,
        "p_holm": [0.01, 0.9, 0.05],
    }
    pd.DataFrame(shares).to_csv(tables / "10_deepest_point-shares.csv", index=False)
    (tables / "05_results-claims.md").write_text("The claims.\n\n| claim |\n|:--|\n| of a test |\n")
    if over:
        (tables.parent / "SHA256SUMS").write_text("")


def test_the_answer_is_of_the_largest_study_that_is_over(tmp_path):
    with pytest.raises(SettingsError, match=r"no profile has results; run \./run_all\.sh first"):
        readme.answer()
    results_of(tmp_path, "quick", "undecided")
    results_of(tmp_path, "smoke", "reproduced")
    results_of(tmp_path, "cifar100", "reproduced", over=False)
    assert readme.answer().startswith(
        "**Of 1 claims: 0 reproduced, 0 not reproduced, 1 undecided**, in the profile [`quick`]"
    )
    assert "smoke" not in readme.answer()
    results_of(tmp_path, "cifar100-lite", "reproduced")
    lines = readme.answer().split("\n\n")
    assert lines[0].startswith(
        "**Of 1 claims: 1 reproduced, 0 not reproduced, 0 undecided**, in the profile [`cifar100-lite`]"
    )
    assert "+1.50 points of accuracy, 95 % interval 1.00 to 2.00, 5 seeds, **reproduced**" in lines[1]
    profile = load_profile("cifar100-lite")
    taught = {
        method: [pair for pair in profile.pairs if method in (pair.methods or profile.methods)]
        for method in ("fitnet", "at")
    }
    seeds = {
        method: " + ".join(str(len(profile.seeds_of(pair, method))) for pair in pairs)
        for method, pairs in taught.items()
    }
    assert (
        f"By method: FitNet +2.00 [0.50, 3.50] ({seeds['fitnet']} seeds), AT +1.00 [0.50, 3.50] "
        f"({seeds['at']} seeds)." in lines[1]
    )
    assert (
        "teacher; for scale, the means of 4 random sets have a standard deviation of 1.23 points. "
        in lines[1].replace("teachers;", "teacher;")
    )
    assert (
        "(Spearman's ρ): AT: how well the layers stand for all others under r2 (-0.91). What the stage ends "
        "give" in lines[1]
    )
    assert (
        "afterwards](results/cifar100-lite/tables/10_deepest_point-shares.md)): AT, the deepest -2.50 "
        "[-4.00, 4.00]. In the table" in lines[1]
    )
    table = tmp_path / "results" / "cifar100-lite" / "tables" / "05_results-choices-spread.csv"
    pd.DataFrame({"arms asked": ["random"], "arms": [1], "spread": [None]}).to_csv(table, index=False)
    assert "for scale" not in readme.answer()
    assert lines[-1].startswith("[`quick`](results/quick/tables/05_results-claims.md), handwritten digits")


def test_trials_are_what_git_ignores():
    ignored = re.findall(r"^/?results/([\w-]+)/$", (ROOT / ".gitignore").read_text(), flags=re.M)
    assert sorted(ignored) == sorted(readme.TRIALS)


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
