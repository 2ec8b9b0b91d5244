"""Which runs stand behind a row of a published table, as links to their records."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import pandas as pd

from ... import records
from ...distillers import distiller
from ...settings import Profile
from ...statistics import CLAIMS, RANDOM, arms_of
from ..engine.plan import Step
from ..grid.weights import has_arms

# By what a run is found, and what is known of one.
KEYS = ("pair", "method", "arm")
COLUMNS = (*KEYS, "seed", "accuracy", "status", "record")
# Names of tables whose rows compare two groups of runs; those of differences end in the reference, without
# the dash that ends a family of arms.
COMPARING = re.compile(r"-(?:claims|ranks|differences-(?P<reference>.+))$")
REFERENCES = {"ranks": RANDOM, RANDOM.strip("-"): RANDOM}


@dataclass(frozen=True)
class Run:
    """A run behind a row. **Arguments:** ``name`` what tells it from its group's others; ``accuracy`` as
    text; ``link`` its record.
    """

    name: str
    accuracy: str
    link: str


@dataclass(frozen=True)
class Behind:
    """What a row was made from.

    **Arguments:** ``count`` how many runs; ``groups`` (title, runs), where each record is linked; ``shown``
    key → values, where the row compares so many runs that the list of all runs shows them.
    """

    count: int = 0
    groups: tuple[tuple[str, tuple[Run, ...]], ...] = ()
    shown: dict | None = None


def runs_behind(
    profile: Profile, step: Step | None, name: str, rows: Sequence[dict], frame: pd.DataFrame
) -> list[Behind]:
    """For each row of a table what it was made from; nothing where it is not about runs.

    Rows say it by their columns pair, method and arm, by columns that are named after methods or arms, or by
    the step that the table is of.

    **Arguments:** ``step`` that published the table, if it is of the plan; ``name`` of the table; ``rows``
    column → text; ``frame`` as ``results_frame`` gives it.
    """
    frame = _runs_of_step(profile, step, frame)
    if frame.empty:
        return [Behind()] * len(rows)
    titles = {key: {value: value for value in frame[key].unique()} for key in KEYS}
    titles["method"] |= {distiller(method).title: method for method in titles["method"]}
    context = {key: [step.parameters[key]] for key in KEYS if key in step.parameters}
    # A table about one pair ends in its name.
    mine = [pair for pair in titles["pair"] if name.endswith(f"-{pair}")]
    context |= {"pair": mine} if mine else {}
    compared = COMPARING.search(name)
    if compared:
        reference = compared["reference"] or compared[0].strip("-")
        context["reference"] = arms_of(frame, REFERENCES.get(reference, reference))
    return [
        _teacher(profile, row) or _behind(_select(row, frame, titles, context), bool(compared))
        for row in rows
    ]


def _teacher(profile: Profile, row: dict) -> Behind | None:
    """The record of a row that is about a teacher."""
    if row.get("role") != "teacher":
        return None
    record = records.load(profile.name, profile.teacher_settings(row["network"]))
    if record is None:
        return None
    return Behind(
        1,
        (
            (
                "",
                (
                    Run(
                        "teacher",
                        f"{record.metrics.get('accuracy', float('nan')):.2f}",
                        record_link(record.name),
                    ),
                ),
            ),
        ),
    )


def _select(
    row: dict, frame: pd.DataFrame, titles: dict[str, dict], context: dict[str, list]
) -> pd.DataFrame:
    """The rows of the frame that a row of a table was made from."""
    claim = next((claim for claim in CLAIMS if claim.text == row.get("claim")), None)
    if claim:
        arms = arms_of(frame, claim.arms) + arms_of(frame, claim.reference)
        return frame[frame["arm"].isin(arms) & frame["method"].map(has_arms)]
    wanted = {key: context[key] for key in KEYS if key in context}
    for key in KEYS:
        heads = [titles[key][column] for column in row if column in titles[key]]
        if key in row or heads:
            wanted[key] = [titles[key].get(row[key])] if key in row else heads
    if "arm" not in wanted:
        return frame.iloc[:0]
    wanted["arm"] = [*wanted["arm"], *context.get("reference", ())]
    found = frame[pd.concat([frame[key].isin(values) for key, values in wanted.items()], axis=1).all(axis=1)]
    return found[found["weight"] == float(row["weight"])] if "weight" in row and "weight" in found else found


def _behind(runs: pd.DataFrame, compared: bool) -> Behind:
    if runs.empty:
        return Behind()
    if compared:
        return Behind(runs["record"].nunique(), shown={key: list(dict.fromkeys(runs[key])) for key in KEYS})
    # What differs between the runs is said of each group; seeds are told apart within it.
    by = [key for key in KEYS if runs[key].nunique() > 1]
    grouped = runs.groupby(by, sort=False) if by else [((), runs)]
    return Behind(
        runs["record"].nunique(), tuple((" · ".join(key), tuple(_runs(group))) for key, group in grouped)
    )


def _runs(group: pd.DataFrame) -> list[Run]:
    accuracies = ["failed" if pd.isna(accuracy) else f"{accuracy:.2f}" for accuracy in group["accuracy"]]
    return [
        Run(f"seed {s}", a, record_link(r))
        for s, a, r in zip(group["seed"], accuracies, group["record"], strict=True)
    ]


def all_runs(frame: pd.DataFrame) -> list[dict]:
    """Every run of the grid for the list of all runs: pair, method, arm, seed, accuracy (two decimals), full
    (all digits), link, hash.
    """
    rows = []
    for row in frame.to_dict("records"):
        measured = not pd.isna(row["accuracy"])
        found = {
            "accuracy": f"{row['accuracy']:.2f}" if measured else row["status"],
            "full": str(row["accuracy"]) if measured else "",
        }
        rows.append(
            {key: row[key] for key in (*KEYS, "seed")}
            | found
            | {"link": record_link(row["record"]), "hash": row["record"].rpartition("_")[2]}
        )
    return rows


def record_link(name: str) -> str:
    """Address of a record, as seen from the report."""
    return quote(f"records/{name}.json", safe="/+")


def _runs_of_step(profile: Profile, step: Step | None, frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that a step's tables are about: those of the grid, or of its own; none where they are about
    layers, or where nobody knows.
    """
    if step is None or (step.trains and not step.cells):
        return frame.iloc[:0]
    own = pd.DataFrame([row for cell in step.cells for row in cell.rows()], columns=["weight", *COLUMNS])
    return frame if set(own["record"]) <= set(frame["record"]) else own
