"""What the networks of a study are worth outside of it: teacher, student alone and best student of every
pair, exported and measured.

What was measured is kept in a committed file per network, so that tables and figures are drawn again without
weights, and with the same times.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from ... import records
from ...data import Images, describe, load_splits
from ...distillers import distiller
from ...export import CONDITIONS, ONNX, PYTORCH, VERSIONS, Exported, Subject, export, read_report
from ...files import sealed, write_json
from ...models import build_model, load_checkpoint
from ...paths import StudyPaths
from ...processes import threads
from ...records import Record, differing, provenance
from ...settings import DistillSettings, Profile, SettingsError, StudentSettings, TeacherSettings, resolved
from ...teachers import TOLERANCE
from ...training import build_objective, distill, evaluate, teacher_weights, train_teacher
from ...training.runs import RECORDS_ONLY
from ..grid.arms import choose_points
from ..grid.cells import ALONE, cell_settings, has_arms, methods_of, networks_frame, results_frame
from ..grid.hint_layers import naming_damage, read_json, stored_similarity

# Roles of networks_frame.
TEACHER = "teacher"


@dataclass(frozen=True)
class Chosen:
    """A trained network of the study.

    **Arguments:**

    - ``row``: its row of ``networks_frame``: pair, network, role, method, arm, accuracy (mean over seeds),
      low, high, n.
    - ``settings``: of its training; for a student with its own arm alone.
    - ``why``: why this network and this seed, in a sentence.
    """

    row: dict
    settings: TeacherSettings | DistillSettings
    why: str

    @property
    def run(self) -> TeacherSettings | StudentSettings:
        """What its record was made with."""
        return _run(self.settings)

    @property
    def name(self) -> str:
        """Of its record, and of all files about it."""
        return records.record_name(self.run)


def chosen_networks(profile: Profile, frame: pd.DataFrame, seed: int | None = None) -> list[Chosen]:
    """Teacher, student alone and best student of every pair, as ``networks_frame`` chooses; each teacher
    once.

    **Arguments:** ``frame`` of ``results_frame``; ``seed`` of the students. If none is given, that with the
    median accuracy is taken (of two, the worse one), so that an export does not flatter.
    """
    found: dict[str, Chosen] = {}
    networks = networks_frame(profile, frame).dropna(subset=["accuracy"]).fillna({"method": "–", "arm": "–"})
    for row in networks.to_dict("records"):
        if row["role"] == TEACHER:
            chosen = Chosen(
                row, profile.teacher_settings(row["network"]), "It taught the students of the study."
            )
        else:
            mine = frame[frame["pair"] == row["pair"]]
            settings = _student_settings(profile, row, _median_seed(mine, row) if seed is None else seed)
            chosen = Chosen(row, settings, _why(row, mine, seed))
        found.setdefault(chosen.name, chosen)
    return list(found.values())


def _median_seed(runs: pd.DataFrame, row: dict) -> int:
    """Of the pair's runs those of the row, and of them the middle one."""
    # The student alone stands beside every method.
    same = (runs["arm"] == row["arm"]) & ((runs["method"] == row["method"]) | (row["arm"] == ALONE))
    ranked = runs[same].drop_duplicates("seed").dropna(subset=["accuracy"]).sort_values(["accuracy", "seed"])
    return int(ranked["seed"].iloc[(len(ranked) - 1) // 2])


def _why(row: dict, runs: pd.DataFrame, seed: int | None) -> str:
    picked = (
        "this is the one of median accuracy" if seed is None else f"this is seed {seed}, as was asked for"
    )
    told = f"Of {row['n']} seeds, whose mean test accuracy is {row['accuracy']:.2f} %, {picked}."
    if row["arm"] == ALONE:
        return told
    # Arms that choose the same layers are one run.
    ways = runs[runs["arm"] != ALONE].drop_duplicates("record")["seed"].value_counts().max()
    return (
        f"{told} Method and layers are the best of {ways} by that mean, which flatters a little."
        if ways > 1
        else told
    )


def _student_settings(profile: Profile, row: dict, seed: int) -> DistillSettings:
    """Settings of one student, whose only arm is its own."""
    pair, choices = profile.pair(row["pair"]), {}
    if has_arms(row["method"]):
        choices = {
            row["arm"]: choose_points(row["arm"], stored_similarity(profile, pair.teacher).layer_map, pair.k)
        }
    return cell_settings(profile, pair, row["method"], seed, choices)


def export_runs(profile: Profile, complete: bool) -> tuple[int, int]:
    """How many networks are measured, and how many there will be.

    **Arguments:** ``complete`` whether all students are trained; before that none of them is chosen.
    """
    if complete:
        networks = chosen_networks(profile, results_frame(profile))
        return sum(stored_measurement(profile, chosen) is not None for chosen in networks), len(networks)
    roles = [
        bool({"ce"} & {*methods_of(profile, pair)}) + bool({*methods_of(profile, pair)} - {"ce"})
        for pair in profile.pairs
    ]
    return 0, len({pair.teacher for pair in profile.pairs}) + sum(roles)


def stored_measurement(profile: Profile, chosen: Chosen) -> Exported | None:
    """What was measured of a network, if it is on file and its run has not been made anew since."""
    path = StudyPaths(profile.name).measurement(chosen.name)
    content = read_json(path)
    if content is None or "settings" not in content:
        return None
    with naming_damage(path):
        known = content["metrics"] == records.load(profile.name, chosen.run).metrics
        return (
            read_report(content["measured"])
            if known and not differing(content["settings"], resolved(chosen.run))
            else None
        )


def measurements(profile: Profile) -> list[tuple[Chosen, Exported]]:
    """Every chosen network with what was measured of it; exported and measured where that is not on file.

    **Raises:** ``SettingsError`` where results are drawn from their records alone and a measurement is
    missing.
    """
    found = []
    for chosen in chosen_networks(profile, results_frame(profile)):
        measured = stored_measurement(profile, chosen)
        if measured is None:
            path = StudyPaths(profile.name).measurement(chosen.name)
            if os.environ.get(RECORDS_ONLY):
                raise SettingsError(
                    f"{path} is missing, and nothing may be trained or measured in its place here"
                )
            measured, conditions = export_network(
                profile, chosen, StudyPaths(profile.name).exported(chosen.name)
            )
            content = {
                "settings": resolved(chosen.run),
                "metrics": records.load(profile.name, chosen.run).metrics,
            }
            write_json(path, sealed({**content, "measured": asdict(measured), "provenance": conditions}))
        found.append((chosen, measured))
    return found


def export_network(profile: Profile, chosen: Chosen, folder: Path) -> tuple[Exported, dict]:
    """Export a network to a folder; one whose weights are gone, or are those of another training, is trained
    again first.

    **Returns:** what was measured of it, and the conditions of that.

    **Raises:** ``SettingsError`` where a form of it answers otherwise than PyTorch.
    """
    # A folder that cannot be written is found before anything takes time.
    folder.mkdir(parents=True, exist_ok=True)
    splits = load_splits(chosen.run.data, torch.device("cpu"))
    network, build = _trained(profile, chosen.settings, splits.test)
    subject = Subject(records.load(profile.name, chosen.run), network, build, chosen.row["arm"], chosen.why)
    measured, made = export(subject, splits.test, folder), provenance(torch.device("cpu"), splits.checksum)
    return measured, {**made, "versions": made["versions"] | VERSIONS, **CONDITIONS}


def _trained(
    profile: Profile, settings: TeacherSettings | DistillSettings, test: Images
) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """The network that a record speaks of, in eval mode on the CPU, and the function that builds it with
    other weights.
    """
    run = _run(settings)
    record = records.load(profile.name, run)
    own = StudyPaths(profile.name).weights(record.name)
    weights = (teacher_weights(run) if isinstance(run, TeacherSettings) else None) or own
    build = _builder(profile, run, test)
    network = build()
    found = float("nan")
    if weights.is_file():
        load_checkpoint(network, weights)
        found = evaluate(network, test, run.precision)["accuracy"]
    room = max(TOLERANCE, 100 / len(test))
    # Said so that weights that are not there count as others.
    if not abs(found - record.metrics["accuracy"]) <= room:
        _train_again(profile, settings, record, test)
        load_checkpoint(network, own)
        again = evaluate(network, test, run.precision)["accuracy"]
        if abs(again - record.metrics["accuracy"]) > room:
            print(
                f"note: {record.name} was trained again, as its weights were gone or others, and has "
                f"{again:.2f} % where its record has "
                f"{record.metrics['accuracy']:.2f} %; another machine, or another number of cores, rounds "
                "otherwise. The record stays.",
                file=sys.stderr,
            )
    return network.eval(), build


def _run(settings: TeacherSettings | DistillSettings) -> TeacherSettings | StudentSettings:
    """What the record of a teacher, or of a student alone, was made with."""
    return settings if isinstance(settings, TeacherSettings) else settings.run(settings.arms[0])


def _builder(
    profile: Profile, run: TeacherSettings | StudentSettings, test: Images
) -> Callable[[], nn.Module]:
    entry = describe(run.data)
    if isinstance(run, StudentSettings) and distiller(run.method).reuses_classifier:
        # Its shape depends on the teacher's.
        teacher, _ = _trained(profile, run.teacher, test)
        return lambda: build_objective(run, teacher).network.to(memory_format=torch.contiguous_format)
    return partial(
        build_model,
        run.network if isinstance(run, TeacherSettings) else run.student,
        entry.classes,
        entry.channels,
    )


def _train_again(
    profile: Profile, settings: TeacherSettings | DistillSettings, record: Record, test: Images
) -> None:
    """Train a run for its weights, on as many threads as the first time; its record stays as it was."""
    run = _run(settings)
    taught = isinstance(run, StudentSettings)
    if taught and distiller(run.method).uses_teacher:
        _trained(profile, run.teacher, test)
    # Of students side by side each had one for itself.
    with threads(1 if taught and has_arms(run.method) else record.provenance["threads"]):
        if taught:
            distill(settings, force=True)
        else:
            train_teacher(settings, force=True)


def cost_frame(found: Sequence[tuple[Chosen, Exported]]) -> pd.DataFrame:
    """What each network gives and costs.

    **Arguments:** ``found`` by ``measurements``.

    **Returns:** columns pair, teacher, network, role, method, arm; accuracy (mean over n seeds, %), low,
    high, n; seed (the exported one) and exported (accuracy of its worst form, %); parameters, flops, bytes
    (of the weights), pytorch_ms and onnx_ms (one image, one thread, median), difference (the largest of a
    logit, over all forms).
    """
    rows = []
    for chosen, measured in found:
        forms, teacher = (
            measured.forms.values(),
            chosen.run if isinstance(chosen.run, TeacherSettings) else chosen.run.teacher,
        )
        row = {
            key: chosen.row[key]
            for key in ("pair", "network", "role", "method", "arm", "accuracy", "low", "high", "n")
        }
        row |= {
            "teacher": teacher.network,
            "seed": chosen.run.seed,
            "exported": min(form.accuracy for form in forms),
        }
        row |= {
            "parameters": measured.parameters,
            "flops": measured.flops,
            "bytes": measured.forms["safetensors"].bytes,
        }
        row |= {"pytorch_ms": measured.milliseconds(PYTORCH), "onnx_ms": measured.milliseconds(ONNX)}
        rows.append(row | {"difference": max(form.difference for form in forms)})
    return pd.DataFrame(rows)


def form_frame(found: Sequence[tuple[Chosen, Exported]]) -> pd.DataFrame:
    """Every file of every network.

    **Returns:** columns network, role, form, bytes, difference (the largest of a logit from PyTorch's),
    before and after (test accuracy, %).
    """
    rows = []
    for chosen, measured in found:
        shared = {"network": chosen.row["network"], "role": chosen.row["role"]}
        for name, form in measured.forms.items():
            told = {
                "bytes": form.bytes,
                "difference": form.difference,
                "before": measured.accuracy,
                "after": form.accuracy,
            }
            rows.append({**shared, "form": name, **told})
    return pd.DataFrame(rows)


def latency_frame(found: Sequence[tuple[Chosen, Exported]]) -> pd.DataFrame:
    """Every timing, on one thread.

    **Returns:** columns network, role, runtime, images (at a time), ms (median), low and high (quartiles),
    per_second (images).
    """
    rows = []
    for chosen, measured in found:
        shared = {"network": chosen.row["network"], "role": chosen.row["role"]}
        for one in measured.latency:
            told = {
                "ms": one.median,
                "low": one.low,
                "high": one.high,
                "per_second": round(1000 * one.batch / one.median),
            }
            rows.append({**shared, "runtime": one.runtime, "images": one.batch, **told})
    return pd.DataFrame(rows)
