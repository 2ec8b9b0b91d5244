"""Take a student out of the study: ``python -m pursuhint_lib export PROFILE`` writes it as weights, graph and
ONNX file, and checks them.

It lives here and not beside ``pursuhint_lib.export``, because choosing a student needs a profile and its
records.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from ...export import CARD
from ...paths import StudyPaths
from ...settings import Profile, SettingsError, choose
from ..experiments.exports import TEACHER, Chosen, chosen_networks, export_network, form_frame, latency_frame
from ..grid.cells import results_frame


def export_student(profile: Profile, wanted: dict, folder: Path | None) -> None:
    """Export one student and print what was measured.

    **Arguments:** ``wanted``: pair, method, arm and seed, each ``None`` where it is not named; ``folder`` to
    write to.
    """
    chosen = choose_student(profile, **wanted)
    folder = folder or StudyPaths(profile.name).exported(chosen.name)
    measured, _ = export_network(profile, chosen, folder)
    found = [(chosen, measured)]
    about = f"method {chosen.row['method']}, arm {chosen.row['arm']}, seed {chosen.run.seed}"
    print(f"{chosen.row['network']}, {about}. {chosen.why}")
    print(
        f"{measured.parameters:,} parameters, {measured.flops:,} FLOPs per image; test accuracy before "
        f"export {measured.accuracy:.2f} %\n"
    )
    for table in (form_frame(found), latency_frame(found)):
        print(f"{table.drop(columns=['network', 'role']).to_string(index=False)}\n")
    print(f"Written to {folder}; {CARD} there says how it was made and how to load it.")


def choose_student(
    profile: Profile, pair: str | None, method: str | None, arm: str | None, seed: int | None
) -> Chosen:
    """The best student of a pair among those that are named; the one of median accuracy if no seed is given.

    **Arguments:** each ``None`` where it is not named; the pair is then the profile's first.

    **Raises:** ``SettingsError`` naming what exists, or the command that trains students where there are
    none.
    """
    one = replace(profile, pairs=(profile.pair(pair or profile.pairs[0].name),))
    frame = results_frame(one)
    if frame.empty:
        raise SettingsError(
            f"{profile.name} has no trained student of {one.pairs[0].name} yet; run ./run_all.sh "
            f"{profile.name} first"
        )
    for column, value in (("method", method), ("arm", arm)):
        if value is not None:
            frame = frame[frame[column] == choose(column, value, dict.fromkeys(frame[column]))]
    return _with_seed(one, frame, seed)


def _with_seed(profile: Profile, frame: pd.DataFrame, seed: int | None) -> Chosen:
    found = [chosen for chosen in chosen_networks(profile, frame, seed) if chosen.row["role"] != TEACHER]
    if not found:
        raise SettingsError(
            f"every student of {profile.pairs[0].name} that is asked for has failed; choose another method "
            "or arm"
        )
    # The best one comes after the one without a teacher.
    chosen = found[-1]
    same = frame[(frame["arm"] == chosen.row["arm"]) & (frame["status"] == "ok")]
    choose("seed", str(chosen.run.seed), map(str, sorted(set(same["seed"]))))
    return chosen
