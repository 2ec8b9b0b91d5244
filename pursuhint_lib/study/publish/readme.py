"""The parts of README.md, ANSWERS.md and docs/ that follow from profiles, notebooks, results and settings:
``python -m pursuhint_lib docs`` writes them anew.

Such a part stands between two comments, ``<!-- answer -->`` and ``<!-- end of answer -->``; its name is one
of ``BLOCKS``.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from ... import records
from ...files import replacing
from ...paths import CONFIG, NOTEBOOKS, ROOT, StudyPaths
from ...settings import Profile, SettingsError, choose, read_profile
from ..engine.execution import duration
from ..experiments.speed_check import APART
from ..grid.notes import ANSWER, PROTOCOL, current, read_notes
from ..grid.profiles import profile_path
from .catalogue import catalogue, keys
from .verify import sums_file

EFFECTS = "05_results-effects"
POPULATION = "13_population-resnet20-resnet8-ranks"
# The profiles that answer, in the order of their answers, each with the figure that is shown of it.
ANSWERS = {
    "cifar100": EFFECTS,
    "cifar100-sets": POPULATION,
    "cifar100-two": "15_named_before-family",
    "cifar100-random": "05_results-accuracy-resnet56-resnet8",
    "cifar100-lite": EFFECTS,
    "quick": None,
}
# A profile for the tests, whose results git ignores.
TRIAL = "smoke"
CATALOGUE = ROOT / "docs" / "catalogue.md"
_BLOCK = re.compile(r"(<!-- (\w+) -->\n)(?:.*?\n)??(<!-- end of \2 -->)", flags=re.S)
_MARKER = re.compile(r"<!-- (?:end of )?(\w+) -->")


def answer() -> str:
    """What a person has written of the results of each finished profile of ``ANSWERS``, with its figure and
    the caption.

    **Raises:** ``SettingsError`` where no finished profile has such a note, or one was written for other
    numbers.
    """
    written = [name for name in _finished() if ANSWER in read_notes(name)]
    if not written:
        raise SettingsError(
            f"no finished profile has a note with a section {ANSWER}; write one in config/notes"
        )
    return "\n\n".join(part for name in written for part in _answer(name))


def _answer(name: str) -> Iterator[str]:
    title, table = _profiles()[name].title, f"[every difference](results/{name}/tables/{EFFECTS}.md)"
    yield f"**{title[:1].upper()}{title[1:]}** ([`{name}`](config/{name}.yaml), {table})"
    yield current(name, ANSWER)
    if figure := ANSWERS.get(name):
        yield from _figure(name, figure)


def _figure(name: str, figure: str) -> Iterator[str]:
    """A published figure, and its caption."""
    caption = (StudyPaths(name).figures / f"{figure}.md").read_text(encoding="utf-8").strip()
    yield f"![{caption.partition('. ')[0]}](results/{name}/figures/{figure}.png)"
    yield f"*{caption}*"


def tests() -> str:
    """What a person has written of the tests that docs/protocol.md names, over several profiles, and the
    figure of all sets of layers.
    """
    return "\n\n".join([current(PROTOCOL, ANSWER), *_figure("cifar100-sets", POPULATION)])


def notebooks() -> str:
    """Every notebook, what it asks, and where an executed copy is."""
    # Of the profile with the most pairs, which has most to show.
    rows, finished = [], sorted(_finished(), key=lambda name: -len(_profiles()[name].pairs))
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        executed = next((shown for name in finished if (shown := _executed(name, file.stem))), "–")
        rows.append((f"[`{file.stem}`](notebooks/{file.name})", heading(file)[1], executed))
    return _table(("notebook", "asks", "executed"), rows)


def profiles() -> str:
    """Every profile in config/: what it is, its grid, and what is on record."""
    rows, finished = [], _finished()
    for name, profile in _profiles().items():
        runs = list(_records(name)) if name in finished else []
        spent = duration(sum(run.provenance["seconds"] for run in runs))
        pairs = "; ".join(f"{pair.teacher} → {pair.student}" for pair in profile.pairs)
        grid = f"{len(profile.methods)} × {len(profile.arms)} × {len(profile.seeds)}"
        on_record = f"{len(runs):,} trainings, {spent}" if runs else "–"
        rows.append((f"`{name}`", profile.title, pairs, grid, on_record))
    return _table(("profile", "what", "pairs", "methods × arms × seeds", "on record"), rows)


def cost() -> str:
    """What the runs on record took: per profile and network, how many, how long and on what."""
    columns = ("profile", "network", "device", "seconds", "memory")
    rows = [(f"`{name}`", *_conditions(record)) for name in _finished() for record in _records(name)]
    groups = pd.DataFrame(rows, columns=columns).groupby(["profile", "network", "device"])
    table = groups.agg(
        runs=("seconds", "size"),
        median=("seconds", "median"),
        total=("seconds", "sum"),
        memory=("memory", "max"),
    ).reset_index()
    table["memory"] = table["memory"] / 1024
    texts = {
        "runs": "{:,}".format,
        "median": "{:.1f} s".format,
        "total": duration,
        "memory": "{:.2f} GiB".format,
    }
    shown = table.assign(**{column: table[column].map(text) for column, text in texts.items()})
    return _table(
        ("profile", "network", "device", "trainings", "median", "all together", "peak memory"),
        shown.itertuples(index=False),
    )


BLOCKS = {
    "tests": tests,
    "answer": answer,
    "notebooks": notebooks,
    "profiles": profiles,
    "cost": cost,
    "keys": keys,
}


def filled(page: str) -> str:
    """A page with its blocks made anew.

    **Raises:** ``SettingsError`` for a block that does not exist, or that does not end.
    """
    for name in _MARKER.findall(page):
        choose("block of a page", name, BLOCKS)
    parts = _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", page)
    if len(_MARKER.findall(page)) != 2 * len(_BLOCK.findall(page)):
        raise SettingsError(
            "a block of the page has no end, or no beginning; it stands between <!-- name --> and <!-- end "
            "of name -->"
        )
    return parts


def pages() -> list[Path]:
    """The pages that have such blocks."""
    return [
        path
        for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))
        if _MARKER.search(path.read_text(encoding="utf-8"))
    ]


def write_pages() -> None:
    """Write the blocks of all pages anew, and the catalogue, and say which pages have changed.

    **Raises:** ``SettingsError`` naming the page with a block that cannot be written.
    """
    for page in pages():
        try:
            _write(page, filled(page.read_text(encoding="utf-8")))
        except SettingsError as error:
            raise SettingsError(f"{page.relative_to(ROOT)}: {error}") from None
    _write(CATALOGUE, catalogue())


def _write(page: Path, text: str) -> None:
    changed = page.read_text(encoding="utf-8") != text
    if changed:
        with replacing(page) as draft:
            draft.write_text(text, encoding="utf-8")
    print(f"{page.relative_to(ROOT)}: {'written anew' if changed else 'as it should be'}")


def _profiles() -> dict[str, Profile]:
    return {
        path.stem: read_profile(profile_path(path.stem))
        for path in sorted(CONFIG.glob("*.yaml"), key=lambda path: path.stem)
    }


def _finished() -> list[str]:
    """Profiles with results that count, those that may be the answer first. While a profile runs, its results
    have no checksums.
    """
    names = [*ANSWERS, *(name for name in _profiles() if name not in (*ANSWERS, TRIAL))]
    return [name for name in names if sums_file(StudyPaths(name).results).is_file()]


def _records(name: str) -> Iterator[records.Record]:
    """Every run of a profile, those that notebook 07 trains alone too."""
    for folder in (StudyPaths(name).records, StudyPaths(f"{name}/{APART}").records):
        yield from map(records.read, sorted(folder.glob("*.json")))


def _conditions(record: records.Record) -> tuple[str, str, float, float]:
    """Network, device, seconds and peak memory in MiB (missing in the oldest records)."""
    settings, made = record.settings, record.provenance
    network = (
        settings["network"]
        if record.kind == "teacher"
        else f"{settings['student']} from {settings['teacher']['network']}"
    )
    threads = f"{made['threads']} thread{'s' * (made['threads'] > 1)}"
    return network, f"{made['device']}, {threads}", made["seconds"], made.get("peak_memory_mib", float("nan"))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without padding, so that a new row changes no other."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _executed(name: str, stem: str) -> str:
    """Link to the executed copy of a notebook in a profile's results, or to that of the first pair or
    teacher and to the folder of all; empty if there is none.
    """
    files, main = StudyPaths(name).notebooks.glob("*.ipynb"), _profiles()[name].pairs[0]
    copies = [file.name for file in files if file.stem == stem or file.stem.startswith(f"{stem}-")]
    copies.sort(key=lambda copy: (main.name not in copy, main.teacher not in copy, copy))
    more = f", one of [{len(copies)}](results/{name}/notebooks)" if len(copies) > 1 else ""
    return f"[`{name}`](results/{name}/notebooks/{copies[0]}){more}" if copies else ""


def heading(notebook: Path) -> tuple[str, str]:
    """Title of a notebook, and what it asks: what follows **Question.** up to the last question mark there,
    or the title where that is a question.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    title = text.partition("\n")[0].removeprefix("# ")
    asked = re.search(r"\*\*Question\.\*\*\s+((?:[^\n]|\n(?!\n))*\?)", text)
    return title, title if title.endswith("?") or asked is None else " ".join(asked[1].split())
