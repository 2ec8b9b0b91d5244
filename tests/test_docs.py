"""The pages say what the code does: links, commands, quoted messages, places, variables and figures are
looked up.
"""

import ast
import importlib.util
import json
import re
import shlex
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path

import papermill
import pytest
import yaml

from pursuhint_lib.cli import parser
from pursuhint_lib.data import DATASETS
from pursuhint_lib.paths import ROOT
from pursuhint_lib.similarity import METRICS
from pursuhint_lib.study.grid.arms import ARMS, check_arm
from pursuhint_lib.study.grid.cells import methods_of
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.teachers import TOLERANCE

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LIBRARY = sorted((ROOT / "pursuhint_lib").rglob("*.py"))
BENCHMARKS = ROOT / "benchmarks" / "results"
# What stands for a value in the description of a command.
PLACEHOLDERS = {"PROFILE": "quick", "[PROFILE]": "quick", "N": "2", "M": "2", "DIR": ".", "OPTIONS": "-n"}
# Words that begin a command, in a line of a block or between backticks.
BEGINS = ("./run_", ".venv/", "conda ", "workflow/many_hosts.sh ", "jupytext ")


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def rows(text: str, header: str) -> list[list[str]]:
    """Cells of the rows of all tables whose header begins so."""
    tables = re.findall(rf"^\| {re.escape(header)}.*\n\|[-| :]+\n((?:\|.*\n)+)", text, flags=re.M)
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for table in tables
        for line in table.splitlines()
    ]


def anchors(file: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_every_link_leads_somewhere(file):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text()):
        path, _, anchor = target.partition("#")
        aim = file.parent / path if path else file
        assert aim.exists(), target
        assert not anchor or anchor in anchors(aim), target


def test_a_hint_layer_is_no_point_and_a_difference_is_in_pp():
    """The glossary's words, in what a reader reads and what notebooks print."""
    texts = {file.name: file.read_text() for file in PAGES}
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text())["cells"]
        texts[file.name] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        strings = [node.value for source in code for node in ast.walk(ast.parse(source)) if is_text(node)]
        # A name of a column is one word.
        assert not [text for text in strings if " " in text and re.search(r"\bpoints?\b", text)], file
    for name, text in texts.items():
        for code in (r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)"):
            text = re.sub(code, " ", text, flags=re.S)
        assert not re.findall(r"(?<!percentage )(?<!floating )\bpoints?\b", " ".join(text.split())), name


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def commands(text: str) -> list[str]:
    """Lines of the shell blocks, and what stands between backticks and begins like a command."""
    blocks = chain.from_iterable(
        block.splitlines() for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    )
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [line for line in blocks if line.strip()] + [span for span in spans if span.startswith(BEGINS)]


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words[1]
        if words[1] == "pursuhint_lib":
            options = parser().parse_args(words[2:])
            assert options.command.__name__ != "_verify" or (ROOT / options.folder).is_dir()
        return
    text = (ROOT / words[0]).read_text()
    assert all(f'"{word}"' in text for word in words[1:] if word.startswith("--"))


def check_tool(name: str, words: list[str]) -> None:
    """A program of the environment, and that what it is given exists."""
    assert name in {script.name for script in entry_points(group="console_scripts")}, name
    files = [ROOT / word for word in words if word.startswith("notebooks/")]
    assert all(file.exists() for file in files)
    if name == "papermill":
        given = [words[i + 1] for i, word in enumerate(words) if word == "-p"]
        assert set(given) <= set(papermill.inspect_notebook(str(files[0])))
    elif name == "pre-commit":
        assert words in (["install"], ["run", "--all-files"])
    elif name == "pip":
        assert words[1].rpartition("==")[2] in (ROOT / "workflow" / "slurm" / "config.yaml").read_text()
    else:
        assert (name, words) == ("jupyter", ["lab", "notebooks/"])


def check_many_hosts(words: list[str]) -> None:
    profile = load_profile(words[0])
    assert words[2] in methods_of(profile, profile.pair(words[1]))


def test_commands_are_found():
    assert len([line for file in PAGES for line in commands(file.read_text())]) > 30


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_every_command_can_be_given(file):
    for line in commands(file.read_text()):
        program, *words = shlex.split(line, comments=True)
        words = words[: words.index(">")] if ">" in words else words
        if program == "./run_all.sh":
            own = words[: words.index("--")] if "--" in words else words
            # A profile of the reader's own is as good as any.
            given = ["quick" if word.endswith(".yaml") else PLACEHOLDERS.get(word, word) for word in own]
            options = parser().parse_args(["run", *given])
            assert (ROOT / "config" / f"{options.profile}.yaml").exists(), line
            assert (
                "--profile" not in words
                or (ROOT / words[words.index("--profile") + 1] / "config.yaml").exists()
            )
        elif program == "./run_tests.sh":
            assert set(words) <= {"--all"}, line
        elif program == ".venv/bin/python":
            check_python(words)
        elif program.startswith(".venv/bin/"):
            check_tool(Path(program).name, words)
        elif program == "workflow/many_hosts.sh":
            check_many_hosts(words)
        elif program == "conda":
            environment = yaml.safe_load((ROOT / "environment.yml").read_text())
            assert words[:4] + words[-2:] == [
                "env",
                "create",
                "-f",
                "environment.yml",
                "activate",
                environment["name"],
            ]
        else:
            # Not in the environment; that it keeps names and tags of cells was tried by hand.
            assert program == "jupytext", line


def templates() -> list[str]:
    """Every text of the library, with … where something is filled in, and the lines of the set-up."""
    found = []
    for file in LIBRARY:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found + (ROOT / "workflow" / "environment.sh").read_text().splitlines()


def test_every_quoted_message_is_one_that_the_code_has():
    quoted = [
        message
        for cells in rows(page("troubleshooting"), "message")
        for message in re.findall(r"`([^`]+)`", cells[0])
    ]
    assert len(quoted) > 40
    known = templates()
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("…")), flags=re.S)
        assert any(pattern.search(text) for text in known), message


def test_every_symptom_has_a_cause_and_a_remedy():
    for header in ("message", "symptom"):
        assert all(len(cells) == 3 and all(cells) for cells in rows(page("troubleshooting"), header))


def test_every_deviation_names_its_reason_and_a_place_that_is_there():
    found = rows(page("deviations"), "what")
    assert len(found) > 40
    for cells in found:
        assert len(cells) == 5, cells
        assert all(cells), cells
        places = re.findall(r"`([^`]+)`: `([^`]+)`", cells[4])
        assert places, cells
        for file, text in places:
            assert text in (ROOT / file).read_text(), (file, text)


def test_environment_variables_are_those_of_the_code():
    sources = [*LIBRARY, *(ROOT / "workflow").glob("*"), ROOT / "run_all.sh", ROOT / "run_tests.sh"]
    # What ends in _ is the beginning of a name that a message completes.
    used = {
        name
        for file in sources
        if file.is_file()
        for name in re.findall(r"PURSUHINT_[A-Z_]*[A-Z]\b", file.read_text())
    }
    assert {
        name
        for cells in rows(page("reproducing"), "environment variable")
        for name in re.findall(r"`(\w+)`", cells[0])
    } == used


def test_arms_and_metrics_are_those_of_the_code():
    text = page("arms")
    named = [name for cells in rows(text, "arm") for name in re.findall(r"`([^`]+)`", cells[0])]
    for name in named:
        check_arm(name.replace("<metric>", "r2"), METRICS)
    assert {re.sub(r"-(<metric>|[\d-]+)$", "-", name) for name in named} == set(ARMS)
    listed = re.search(r"`metrics:`\n(.*?)\)\.", text, flags=re.S)[1]
    assert set(re.findall(r"`([\w-]+)`", listed)) == set(METRICS)


def test_facts_of_imagenet_are_those_of_the_code():
    text = page("reproducing")
    assert " and ".join(
        f"{count:,}".replace(",", " ") for count in DATASETS["imagenet"].counts
    ) in text.replace("\n", " ")
    assert f"± {TOLERANCE} pp" in text
    assert "MASTER_PORT:-29500" in (ROOT / "workflow" / "many_hosts.sh").read_text()


def measured(name: str) -> dict:
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def spread(figures: dict, digits: int) -> str:
    return f"{figures['median']:.{digits}f} ({figures['min']:.{digits}f} to {figures['max']:.{digits}f})"


@pytest.mark.parametrize("pair", ["resnet56-resnet20", "resnet32x4-resnet8x4"])
def test_figures_of_a_sweep_are_those_of_its_record(pair):
    found = measured(f"distillation-{pair}")
    ways = (spread(found[way]["images_per_second"], 0) for way in ("textbook", "ours"))
    row = " | ".join(
        [
            " → ".join(found["pair"]),
            *ways,
            spread(found["ratio"], 2),
            f"{100 * found['ours']['share_of_peak']:.0f} %",
        ]
    )
    assert f"| {row} |" in page("speed")
    assert (found["arms"], found["batch"], found["alternations"], found["method"]) == (8, 64, 5, "at")
    assert f"torch {found['versions']['torch']}" in page("speed")


def test_figures_of_single_steps_are_those_of_their_records():
    arms, layers = measured("distillation-arms"), measured("profile-step")
    said = " ".join(page("speed").split())
    deviation = (
        f"at most {100 * arms['largest_deviation']:.1f} % off for {arms['values'][0]} to "
        f"{arms['values'][-1]} arms"
    )
    assert (
        f"{' → '.join(arms['pair'])} takes {arms['teacher_seconds']:.3f} s + A · "
        f"{arms['student_seconds']:.3f} s ({deviation})" in said
    )
    assert (
        f"{layers['network']} on 10 000 images: {layers['seconds']:.1f} s, {layers['peak_memory_gb']:.2f} GB"
        in said
    )
    assert layers["images"] == 10_000


def test_figures_of_decoding_are_those_of_their_record():
    found = measured("imagenet_loader")
    for name, split in (("training", "train"), ("evaluation", "test")):
        speeds = [spread(found[split][way], 0) for way in ("torchvision", "ours")]
        ratios = [spread(found[split][way], 2) for way in ("ratio", "ratio_and_normalised")]
        assert f"| {' | '.join([name, *speeds, *ratios])} |" in page("speed")
    said = " ".join(page("speed").split())
    assert f"{found['images']['number']} real images" in said
    assert f"ranges of {found['alternations']} turns" in said
    assert f"by {found['pixels']['train']['mean']:.2f} levels of 255" in said
    assert found["pixels"]["test"]["max"] == 0


def test_figures_of_redrawing_are_those_of_their_record():
    found = measured("redraw")
    for kind in ("processor", "wall"):
        ways = [spread(found[kind][way], 1) for way in ("papermill", "forks", "ratio")]
        assert f"| {' | '.join([f'{kind} seconds', *ways])} |" in page("speed")
    said = " ".join(page("speed").split())
    assert f"{len(found['notebooks'])} notebooks of `{found['profile']}`" in said
    assert f"ranges of {found['turns']} turns" in said
    missed = found["processor"]["ratio"]["median"] < found["target"]
    assert missed == (f"The target is {found['target']:g} times less processor time; it is missed" in said)
