"""Keep the weights of a profile's trained teachers among its results: ``python -m pursuhint_lib
keep PROFILE``.

Students of other machines, and of forks, then learn from the same teachers, and nobody trains these again.
Convolutions and classifier are kept in bf16, half as large, unless the teacher answers otherwise then, which
is measured.
"""

from pathlib import Path

import torch

from ... import records
from ...data import load_splits
from ...models import save_weights
from ...paths import StudyPaths
from ...settings import Profile, SettingsError
from ...teachers import TOLERANCE
from ...training import evaluate, load_teacher, teacher_weights, write_manifest_entry
from .verify import sums_file, write_sums


def keep_teacher(profile: Profile, network: str) -> tuple[Path, float, float]:
    """Write the weights of a trained teacher to the results, with a manifest entry beside them.

    **Returns:** the file, and the test accuracy (%) on record and with the weights as kept: in bf16 where
    that is within ``TOLERANCE`` points of the record's, and else as they were trained.

    **Raises:** ``SettingsError`` where it is not trained yet, or comes from elsewhere.
    """
    settings = profile.teacher_settings(network)
    if settings.checkpoint is not None:
        raise SettingsError(
            f"teacher {network} of {profile.name} is {settings.checkpoint}; only teachers that are trained "
            "here are kept"
        )
    if teacher_weights(settings) is None:
        raise SettingsError(
            f"teacher {network} of {profile.name} is not trained here; run ./run_all.sh {profile.name} first"
        )
    model = load_teacher(settings)
    for parameter in model.parameters():
        # Those of BatchNorm are few, and scale whole channels.
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(torch.bfloat16).to(parameter.dtype)
    found = evaluate(
        model, load_splits(settings.data, next(model.parameters()).device).test, settings.precision
    )["accuracy"]
    record = records.load(profile.name, settings)
    known = record.metrics["accuracy"]
    exact = abs(found - known) > TOLERANCE
    path = StudyPaths(profile.name).kept_weights(record.name)
    save_weights(load_teacher(settings) if exact else model, path, matrices=None if exact else torch.bfloat16)
    accuracy = known if exact else round(found, 3)
    write_manifest_entry(path, settings, accuracy)
    return path, known, accuracy


def keep_teachers(profile: Profile) -> None:
    """Keep the teachers of all pairs, and of notebook 06, and say how large and how good each is."""
    for network in dict.fromkeys(pair.teacher for pair in profile.all_pairs):
        path, before, after = keep_teacher(profile, network)
        size = f"{path.stat().st_size / 2**20:.2f} MiB"
        print(f"{path}: {size}; test accuracy {after:.2f} %, on record {before:.2f} %")
    results = StudyPaths(profile.name).results
    if sums_file(results).is_file():
        write_sums(results)
