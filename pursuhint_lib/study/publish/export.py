"""Take a student out of the study: ``python -m pursuhint_lib.study.publish.export PROFILE`` writes it as
weights, graph and ONNX file, and checks them.

It lives here and not beside ``pursuhint_lib.export``, because choosing a student needs a profile and its
records.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ...export import CARD
from ...paths import StudyPaths
from ...settings import Profile, SettingsError, choose
from ..engine.worker import fault
from ..experiments.exports import TEACHER, Chosen, chosen_networks, export_network, form_frame, latency_frame
from ..grid.cells import results_frame
from ..grid.profiles import load_profile


def main(arguments: Sequence[str]) -> int:
    """Export one student; what cannot be used ends with one line and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        profile = load_profile(options.profile)
        chosen = choose_student(profile, options.pair, options.method, options.arm, options.seed)
        folder = options.to or StudyPaths(profile.name).exported(chosen.name)
        measured, _ = export_network(profile, chosen, folder)
    except (SettingsError, OSError) as error:
        print(f"error: {fault(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 2
    found = [(chosen, measured)]
    about = ", ".join(
        f"{key} {value}"
        for key, value in (
            ("method", chosen.row["method"]),
            ("arm", chosen.row["arm"]),
            ("seed", chosen.run.seed),
        )
    )
    print(f"{chosen.row['network']}, {about}. {chosen.why}")
    print(
        f"{measured.parameters:,} parameters, {measured.flops:,} FLOPs per image; test accuracy before "
        f"export {measured.accuracy:.2f} %\n"
    )
    for table in (form_frame(found), latency_frame(found)):
        print(f"{table.drop(columns=['network', 'role']).to_string(index=False)}\n")
    print(f"Written to {folder}; {CARD} there says how it was made and how to load it.")
    return 0


def _parser() -> argparse.ArgumentParser:
    about = (
        "Write a trained student as safetensors, torch.export program and ONNX file, with a model card; "
        "each is loaded anew and compared."
    )
    parser = argparse.ArgumentParser(prog="python -m pursuhint_lib.study.publish.export", description=about)
    parser.add_argument("profile", help="a name in config/ or a YAML file of your own")
    parser.add_argument("--pair", help="teacher-student (default: the first of the profile)")
    parser.add_argument(
        "--method", help="its method (default: that of the best student, by mean test accuracy)"
    )
    parser.add_argument(
        "--arm", help="its way to choose the teacher's layers (default: that of the best student)"
    )
    parser.add_argument("--seed", type=int, help="its seed (default: that with the median test accuracy)")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder to write to (default: work/PROFILE/exports/<name of the record>)",
    )
    return parser


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
