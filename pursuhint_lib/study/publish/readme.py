"""The parts of README.md and docs/ that follow from profiles, notebooks and results: ``python -m
pursuhint_lib docs`` writes them anew.

Such a part stands between two comments, ``<!-- answer -->`` and ``<!-- end of answer -->``; its name is one
of ``BLOCKS``.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from ... import records
from ...digits import settled
from ...distillers import distiller
from ...files import replacing
from ...paths import CONFIG, NOTEBOOKS, ROOT, StudyPaths
from ...settings import Profile, SettingsError, choose, read_profile
from ...statistics import CLAIMS, LEVEL
from ..engine.execution import duration
from ..experiments.speed_check import APART
from ..grid.cells import methods_of
from ..grid.profiles import profile_path
from .catalogue import catalogue
from .verify import sums_file

# The profile whose results are the answer: the first that has any.
ANSWERS = ("cifar100", "cifar100-lite", "quick")
# Profiles that try the code and show nothing of the claim; git ignores their results.
TRIALS = ("imagenet-sample", "smoke")
CATALOGUE = ROOT / "docs" / "catalogue.md"
TABLE = "05_results-claims"
VERDICTS = ("reproduced", "not reproduced", "undecided")
# What the paper says; the claims before it must hold before it means anything, and those after it are its
# controls.
PAPER = next(claim.text for claim in CLAIMS if claim.reference == "stage-ends")
_BLOCK = re.compile(r"(<!-- (\w+) -->\n)(?:.*?\n)??(<!-- end of \2 -->)", flags=re.S)
_MARKER = re.compile(r"<!-- (?:end of )?(\w+) -->")


def answer() -> str:
    """Verdicts, table and figure of the claims, of the first profile of ``ANSWERS`` with results; one line
    for every other profile.

    **Raises:** ``SettingsError`` where no profile has results.
    """
    finished = _finished()
    if not finished:
        raise SettingsError("no profile has results; run ./run_all.sh first")
    name, *others = finished
    profile, claims = _profiles()[name], _claims(name).set_index("claim")
    markdown = (StudyPaths(name).tables / f"{TABLE}.md").read_text(encoding="utf-8")
    paper = claims.loc[PAPER]
    parts = [
        f"**{_verdicts(claims)}**, in the profile [`{name}`](config/{name}.yaml). {profile.note}".rstrip(),
        f"The paper's claim is that its points beat the usual stage ends: {paper['mean']:+.2f} points of "
        f"accuracy, 95 % interval {paper['low']:.2f} "
        f"to {paper['high']:.2f}, {paper['n']} seeds, **{paper['verdict']}**. By method: {_by_method(name)}. "
        f"{_scale(name)}{_followed(name)}{_exchanged(name)}"
        "In the table, the rows above it must hold before it means anything; those below it are "
        "its controls.",
        markdown[markdown.index("|") :].strip(),
        f"![The claims and their verdicts](results/{name}/figures/{TABLE}.png)",
        "Differences are in points of test accuracy after the last epoch, paired by seed: the mean over "
        "`cells` (pair × method with hints × "
        "similarity metric) and its 95 % interval over `n` seeds, and over the random sets where they are "
        "the reference; `failed` runs are left out. "
        f"`p_holm`, of no difference, is adjusted over the rows: below {LEVEL} the claim is *reproduced*, or "
        "*not* where the mean is negative. "
        f"`p_equivalent`, of a difference beyond ±{profile.margin:g} points: below {LEVEL} there is none "
        "that matters, and the claim is "
        "*not reproduced*. Otherwise it is *undecided*.",
        *(
            f"[`{other}`](results/{other}/tables/{TABLE}.md), {_profiles()[other].title}: "
            f"{_verdicts(_claims(other))}."
            for other in others
        ),
    ]
    return "\n\n".join(parts)


def notebooks() -> str:
    """Every notebook, what it asks, and where an executed copy is."""
    rows, finished = [], _finished()
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        executed = next((shown for name in finished if (shown := _executed(name, file.stem))), "–")
        rows.append((f"[`{file.stem}`](notebooks/{file.name})", _question(file), executed))
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


BLOCKS = {"answer": answer, "notebooks": notebooks, "profiles": profiles, "cost": cost}


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
    names = [*ANSWERS, *(name for name in _profiles() if name not in (*ANSWERS, *TRIALS))]
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


def _claims(name: str) -> pd.DataFrame:
    return pd.read_csv(StudyPaths(name).tables / f"{TABLE}.csv")


def _by_method(name: str) -> str:
    """The paper's claim in every method by itself, with its seeds, which may be fewer than those of all."""
    methods = pd.read_csv(StudyPaths(name).tables / "05_results-methods.csv")
    rows = methods[methods["compared"] == "minus the stage ends"].sort_values(
        "mean", ascending=False, kind="stable", key=settled
    )
    return ", ".join(
        f"{row.method} {row.mean:+.2f} [{row.low:.2f}, {row.high:.2f}] ({_seeds(name, row.method)})"
        for row in rows.itertuples()
    )


def _seeds(name: str, title: str) -> str:
    """How many seeds a method has in each of its pairs."""
    profile = _profiles()[name]
    (method,) = (method for method in profile.methods if distiller(method).title == title)
    counts = [
        len(profile.seeds_of(pair, method)) for pair in profile.pairs if method in methods_of(profile, pair)
    ]
    return f"{' + '.join(map(str, counts))} seeds"


def _scale(name: str) -> str:
    """What a difference between two sets of layers is to be measured by: how far random sets lie apart; empty
    where there are not two.
    """
    spread = pd.read_csv(StudyPaths(name).tables / "05_results-choices-spread.csv")
    count = len({pair.teacher for pair in _profiles()[name].pairs})
    teachers = "1 teacher" if count == 1 else f"{count} teachers"
    return "".join(
        "A rule takes the same layers of a teacher in every seed, so all of this is about the layers of "
        f"{teachers}; for scale, "
        f"the means of {row['arms']} random sets have a standard deviation of {row['spread']:.2f} points. "
        for row in spread.to_dict("records")
        if row["arms asked"] == "random" and row["arms"] > 1
    )


def _followed(name: str) -> str:
    """Which score of the points the accuracy of a method follows beyond chance, its strongest; empty where
    there is none.
    """
    each = pd.read_csv(StudyPaths(name).tables / "05_results-scores-methods.csv")
    sure = (
        each[each["p_holm"] < LEVEL]
        .sort_values("rho", key=abs, ascending=False, kind="stable")
        .drop_duplicates("method")
    )
    found = "; ".join(f"{row.method}: {_in_words(row.score)} ({row.rho:+.2f})" for row in sure.itertuples())
    start = (
        "Which layers are good depends on the method. What its accuracy follows beyond chance over all "
        "sets of layers (Spearman's ρ): "
    )
    return f"{start}{found}. " if found else ""


def _exchanged(name: str) -> str:
    """What is better at the stage ends, and what at the paper's points, beyond chance: the deepest point, or
    the others; empty where neither is.
    """
    file = StudyPaths(name).tables / "10_deepest_point-shares.csv"
    shares = pd.read_csv(file) if file.is_file() else pd.DataFrame({"p_holm": []})
    found = [
        f"{row.method}, {row.points} {row.mean:+.2f} [{row.low:.2f}, {row.high:.2f}]"
        for row in shares[shares["p_holm"] < LEVEL].itertuples()
    ]
    start = (
        "What the stage ends give over the paper's points, by point, where it is beyond chance "
        "([trained "
        "for this question afterwards]"
    )
    return f"{start}(results/{name}/tables/{file.stem}.md)): {'; '.join(found)}. " if found else ""


def _in_words(score: str) -> str:
    """A score of ``scores.point_scores``, as a reader without the notebook understands it."""
    name, _, metric = score.partition(", ")
    words = {
        "deepest": "how deep the last layer lies, a score added after the results were seen",
        "depth": "how deep the layers lie",
        "quality": "how well classes are apart in them",
    }
    return words.get(name) or f"how well the layers stand for all others under {metric}"


def _verdicts(claims: pd.DataFrame) -> str:
    """How many claims have which verdict, in words."""
    return f"Of {len(claims)} claims: " + ", ".join(
        f"{int((claims['verdict'] == verdict).sum())} {verdict}" for verdict in VERDICTS
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without padding, so that a new row changes no other."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _executed(name: str, stem: str) -> str:
    """Link to the executed copy of a notebook in a profile's results, or to the first of them; empty if there
    is none.
    """
    files = StudyPaths(name).notebooks.glob("*.ipynb")
    copies = sorted(file.name for file in files if file.stem == stem or file.stem.startswith(f"{stem}-"))
    more = f", one of {len(copies)}" if len(copies) > 1 else ""
    return f"[`{name}`](results/{name}/notebooks/{copies[0]}){more}" if copies else ""


def _question(notebook: Path) -> str:
    """What a notebook asks: its title where that is a question, or what follows **Question.** up to the last
    question mark there.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    title = text.partition("\n")[0].removeprefix("# ")
    asked = re.search(r"\*\*Question\.\*\*\s+((?:[^\n]|\n(?!\n))*\?)", text)
    return title if title.endswith("?") or asked is None else " ".join(asked[1].split())
