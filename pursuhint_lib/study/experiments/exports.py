"""What the networks of a study are worth outside of it: teacher, student alone and best student of every
pair, exported and measured.

What was measured is kept in a committed file per network, so that tables and figures are drawn again without
weights, and with the same times.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from ... import records
from ...data import Images, describe, example_input, load_splits
from ...distillers import distiller
from ...export import (
    CONDITIONS,
    FORMS,
    ONNX,
    PYTORCH,
    VERSIONS,
    Exported,
    Latency,
    Subject,
    capture,
    export,
    latencies,
    load_onnx,
    read_report,
)
from ...models import build_model, load_checkpoint
from ...paths import StudyPaths
from ...processes import threads
from ...records import Record, provenance
from ...settings import DistillSettings, Profile, StudentSettings, TeacherSettings, resolved
from ...teachers import TOLERANCE
from ...training import build_objective, distill, evaluate, load_teacher, teacher_weights, train_teacher
from ..grid.cells import ALONE, Cell, grid_cells, methods_of, networks_frame, results_frame
from ..grid.stored import Stored
from ..grid.weights import has_arms

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
    return Cell(profile, profile.pair(row["pair"]), row["method"], seed, (row["arm"],)).settings


@dataclass(frozen=True)
class Measurements:
    """The measurements that notebook 08 makes: of the teacher, of the student alone and of the best student
    of every pair.
    """

    profile: Profile
    about = "teacher, student alone and best student of every pair"

    def files(self) -> tuple[dict, bool]:
        """Every measurement → whether it is there; that is all. Before all students are trained none is
        chosen.
        """
        profile = self.profile
        grid = [(pair, method) for pair in profile.pairs for method in methods_of(profile, pair)]
        wanted = sum(len(cell.arms) for pair, method in grid for cell in grid_cells(profile, pair, method))
        frame = results_frame(profile)
        # The student alone stands beside every method with hints, too.
        if len(frame) and len(frame[(frame["arm"] != ALONE) | (frame["method"] == "ce")]) == wanted:
            networks = chosen_networks(profile, frame)
            files = [measurement_file(profile, network) for network in networks]
            files.append(times_file(profile, networks))
            return {file.path: file.found() is not None for file in files}, True
        students = {(pair.name, ALONE if method == "ce" else "best") for pair, method in grid}
        return dict.fromkeys([*students, *(pair.teacher for pair in profile.pairs), "times"], False), True


def measurement_file(profile: Profile, chosen: Chosen) -> Stored:
    """What was measured of a network; it counts while its run has not been made anew since."""
    path, run = StudyPaths(profile.name).measurement(chosen.name), chosen.run

    def read(content: dict) -> Exported | None:
        known = content["metrics"] == records.load(profile.name, run).metrics
        return read_report(content["measured"]) if known else None

    def make() -> dict:
        measured, made = export_network(profile, chosen, StudyPaths(profile.name).exported(chosen.name))
        metrics = records.load(profile.name, run).metrics
        return {"metrics": metrics, "measured": asdict(measured), "provenance": made}

    return Stored(path, resolved(run), read, make)


def measurements(profile: Profile) -> list[tuple[Chosen, Exported]]:
    """Every chosen network with what was measured of it; exported and measured where that is not on file.

    Its times are those of ``times_file``, which can be compared.

    **Raises:** ``SettingsError`` where results are drawn from their records alone and a measurement is
    missing.
    """
    networks = chosen_networks(profile, results_frame(profile))
    found = [measurement_file(profile, chosen).get() for chosen in networks]
    device, times = times_file(profile, networks).get()
    together = [
        replace(one, latency=times[chosen.name], device=device)
        for chosen, one in zip(networks, found, strict=True)
    ]
    return [*zip(networks, together, strict=True)]


def times_file(profile: Profile, networks: Sequence[Chosen]) -> Stored:
    """How long the networks take, measured in one process and in turns: times of another day or machine are
    no comparison.

    Stored are the device, and latencies whose runtime has the network's name before it.
    """

    def read(content: dict) -> tuple[str, dict[str, tuple[Latency, ...]]]:
        found: dict[str, tuple[Latency, ...]] = {}
        for one in content["latency"]:
            name, _, runtime = one["runtime"].partition(" ")
            found[name] = (*found.get(name, ()), Latency(**one | {"runtime": runtime}))
        return content["provenance"]["device"], found

    def make() -> dict:
        measured = [asdict(one) for one in _times(networks)]
        made = provenance(torch.device("cpu"), "")
        return {
            "latency": measured,
            "provenance": {**made, "versions": made["versions"] | VERSIONS, **CONDITIONS},
        }

    wanted = {"networks": [chosen.name for chosen in networks]}
    return Stored(StudyPaths(profile.name).measurement("times"), wanted, read, make)


def _times(networks: Sequence[Chosen]) -> tuple[Latency, ...]:
    """Latencies of all networks with fresh weights, on which they do not depend."""
    image, runners = example_input(networks[0].run.data), {}
    with tempfile.TemporaryDirectory() as folder, threads(1):
        for chosen in networks:
            network, path = _builder(chosen.run)().eval(), Path(folder, "model.onnx")
            FORMS["ONNX"].write(network, capture(network, image), path)
            runners[f"{chosen.name} {PYTORCH}"] = network
            runners[f"{chosen.name} {ONNX}"] = load_onnx(path)
    return latencies(runners, image)


def export_network(profile: Profile, chosen: Chosen, folder: Path) -> tuple[Exported, dict]:
    """Export a network to a folder; one whose weights are gone, or are those of another training, is trained
    again first.

    **Returns:** what was measured of it, and the conditions of that.

    **Raises:** ``SettingsError`` where a form of it answers otherwise than PyTorch.
    """
    # A folder that cannot be written is found before anything takes time.
    folder.mkdir(parents=True, exist_ok=True)
    run, cpu = chosen.run, torch.device("cpu")
    splits, build = load_splits(run.data, cpu), _builder(run)
    network = _trained(profile, chosen.settings, build(), splits.test)
    subject = Subject(records.load(profile.name, run), network, build, chosen.row["arm"], chosen.why)
    measured, made = export(subject, splits.test, folder), provenance(cpu, splits.checksum)
    return measured, {**made, "versions": made["versions"] | VERSIONS, **CONDITIONS}


def _run(settings: TeacherSettings | DistillSettings) -> TeacherSettings | StudentSettings:
    """What the record of a teacher, or of a student alone, was made with."""
    return settings if isinstance(settings, TeacherSettings) else settings.run(settings.arms[0])


def _builder(run: TeacherSettings | StudentSettings) -> Callable[[], nn.Module]:
    """The function that builds the network of a run, with any weights."""
    if isinstance(run, StudentSettings) and distiller(run.method).reuses_classifier:
        # Its shape depends on the teacher's.
        teacher = load_teacher(run.teacher).cpu()
        return lambda: build_objective(run, teacher).network.to(memory_format=torch.contiguous_format)
    entry, name = describe(run.data), run.network if isinstance(run, TeacherSettings) else run.student
    return partial(build_model, name, entry.classes, entry.channels)


def _trained(
    profile: Profile, settings: TeacherSettings | DistillSettings, network: nn.Module, test: Images
) -> nn.Module:
    """The network with the weights that its record speaks of, in eval mode on the CPU."""
    run = _run(settings)
    record = records.load(profile.name, run)
    own = StudyPaths(profile.name).weights(record.name)
    weights = (teacher_weights(run) if isinstance(run, TeacherSettings) else None) or own
    room = max(TOLERANCE, 100 / len(test))
    if (
        not weights.is_file()
        or abs(_accuracy(network, weights, run, test) - record.metrics["accuracy"]) > room
    ):
        _train_again(settings, record)
        again = _accuracy(network, own, run, test)
        if abs(again - record.metrics["accuracy"]) > room:
            print(
                f"note: {record.name} was trained again, as its weights were gone or others, and has "
                f"{again:.2f} % where its record has "
                f"{record.metrics['accuracy']:.2f} %; another machine, or another number of cores, rounds "
                "otherwise. The record stays.",
                file=sys.stderr,
            )
    return network.eval()


def _accuracy(
    network: nn.Module, weights: Path, run: TeacherSettings | StudentSettings, test: Images
) -> float:
    load_checkpoint(network, weights)
    return evaluate(network, test, run.precision)["accuracy"]


def _train_again(settings: TeacherSettings | DistillSettings, record: Record) -> None:
    """Train a run for its weights, on as many threads as the first time; its record stays as it was."""
    taught = isinstance(settings, DistillSettings)
    # Of students side by side each had one for itself.
    with threads(1 if taught and has_arms(_run(settings).method) else record.provenance["threads"]):
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
        run, forms = chosen.run, measured.forms.values()
        taken = ("pair", "network", "role", "method", "arm", "accuracy", "low", "high", "n")
        row = {key: chosen.row[key] for key in taken}
        row["teacher"] = run.network if isinstance(run, TeacherSettings) else run.teacher.network
        row |= {"seed": run.seed, "exported": min(form.accuracy for form in forms)}
        row |= {"parameters": measured.parameters, "flops": measured.flops}
        row["bytes"] = measured.forms["safetensors"].bytes
        row |= {"pytorch_ms": measured.milliseconds(PYTORCH), "onnx_ms": measured.milliseconds(ONNX)}
        rows.append(row | {"difference": max(form.difference for form in forms)})
    return pd.DataFrame(rows)


def form_frame(found: Sequence[tuple[Chosen, Exported]]) -> pd.DataFrame:
    """Every file of every network.

    **Returns:** columns network, role, form, bytes, difference (the largest of a logit from PyTorch's),
    before and after (test accuracy, %).
    """
    rows = [
        {
            "network": chosen.row["network"],
            "role": chosen.row["role"],
            "form": name,
            "bytes": form.bytes,
            "difference": form.difference,
            "before": measured.accuracy,
            "after": form.accuracy,
        }
        for chosen, measured in found
        for name, form in measured.forms.items()
    ]
    return pd.DataFrame(rows)


def latency_frame(found: Sequence[tuple[Chosen, Exported]]) -> pd.DataFrame:
    """Every timing, on one thread.

    **Returns:** columns network, role, device, runtime, images (at a time), ms (median), low and high
    (quartiles), per_second (images).
    """
    rows = [
        {
            "network": chosen.row["network"],
            "role": chosen.row["role"],
            "device": measured.device,
            "runtime": one.runtime,
            "images": one.batch,
            "ms": one.median,
            "low": one.low,
            "high": one.high,
            "per_second": round(1000 * one.batch / one.median),
        }
        for chosen, measured in found
        for one in measured.latency
    ]
    return pd.DataFrame(rows)
