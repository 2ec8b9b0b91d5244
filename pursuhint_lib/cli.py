"""Every command: ``python -m pursuhint_lib COMMAND``. run_all.sh calls ``run``, the workflow the last four.

What cannot be used ends with one line and exit status 2, here for all of them. A command imports what it
needs when it runs: ``take-over`` ends every step of a study and needs next to nothing.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .faults import told
from .paths import StudyPaths, shown

PROFILE = "a name in config/ or a YAML file of your own"


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    **Returns:** its exit status: 0, or 1 where what was checked is wrong, 2 where the command cannot be done
    as it is asked for, 75 where a training was stopped and can go on, 130 after Ctrl-C.
    """
    # By hand: argparse refuses what follows "--" where an option stands between the profile and it.
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        given = argparse.Namespace(rest=arguments[cut + 1 :])
        options, unknown = parser().parse_known_args(arguments[:cut], given)
        if unknown:
            # By the parser of the command, which knows its name and its options.
            options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130
    except Exception as error:
        if (said := told(error)) is None:
            # A mistake of the program is shown whole.
            raise
        line, status = said
        print(f"error: {line}", file=sys.stderr, flush=True)
        return status


def parser() -> argparse.ArgumentParser:
    """The commands with their options."""
    whole = argparse.ArgumentParser(prog="python -m pursuhint_lib", description="The commands of the study.")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable, about: str, **given) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about, **given)
        added.set_defaults(command=command, parser=added)
        return added

    _add_run_options(
        add(
            "run",
            _run,
            "Run the study of one profile, or say what that would take. What follows -- is passed to "
            "snakemake unchanged.",
            prog="./run_all.sh",
        )
    )
    tune = add("tune", _tune, "Choose the weights of hint losses on held-out images, without notebooks.")
    tune.add_argument("profile", help=PROFILE)
    tune.add_argument("pair", nargs="?", help="teacher-student (default: all that are tuned)")
    tune.add_argument("method", nargs="*", help="methods (default: all that are tuned)")
    _add_export_options(
        add(
            "export",
            _export,
            "Write a trained student as safetensors, torch.export program and ONNX file, with a model card; "
            "each is loaded anew and compared.",
        )
    )
    keep = add("keep", _keep, "Keep the weights of trained teachers among the results.")
    keep.add_argument("profile", help=PROFILE)
    verify = add("verify", _verify, "Draw a results folder again from its records and compare.")
    verify.add_argument("folder", type=Path, help="results/<profile>")
    verify.add_argument("profile", nargs="?", help=f"its profile: {PROFILE} (default: the folder's name)")
    stamp = add("stamp", _stamp, "Say that notes on results have been read beside the present numbers.")
    stamp.add_argument("profile", help="a name in config/notes/")
    stamp.add_argument("section", nargs="+", help="a step, or answer")
    add(
        "docs", _docs, "Write the parts of README.md, ANSWERS.md and docs/ that follow from code and results."
    )
    add("slot", _slot, "Run the command that follows -- with a GPU for itself.")
    _add_inner_commands(add)
    add("gradients", _gradients, "Compare the gradients of convolutions, read as JSON, with plain ones.")
    return whole


def _add_run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("profile", nargs="?", default="quick", help=f"{PROFILE} (default: quick)")
    for flag, about in (
        ("--plan", "print the steps, which are done, and the time and disk that the rest will take"),
        ("--check", "look at data, teachers, device and disk; train nothing"),
        ("--force", "do everything again; the results that exist are set aside, not deleted"),
    ):
        run.add_argument(flag, action="store_true", help=about)
    data = "folder of the data sets, or an ImageNet tree (default: PURSUHINT_DATA, or data/)"
    run.add_argument("--data", metavar="DIR", help=data)
    minutes = "save what is in training after so long and end; the same command goes on"
    run.add_argument("--max-minutes", type=float, metavar="M", help=minutes)
    board = "write TensorBoard's files beside the metrics (needs the package tensorboard)"
    run.add_argument("--tensorboard", action="store_true", help=board)
    run.add_argument("--cores", type=int, help="CPU cores to use (default: all that are available)")


def _add_inner_commands(add: Callable) -> None:
    """Those of the processes that a run starts."""
    for name, command, about, *given in (
        ("train", _train, "One that trains a pair and method with others.", "profile", "pair", "method"),
        ("fork", _fork, "What the steps of a run are forked from.", "profile", "listener"),
        ("take-over", _take_over, "Take an executed notebook over as results.", "profile", "step", "key"),
    ):
        inner = add(name, command, about)
        for argument in given:
            inner.add_argument(argument)


def _add_export_options(export: argparse.ArgumentParser) -> None:
    export.add_argument("profile", help=PROFILE)
    for name, about in (
        ("--pair", "teacher-student (default: the first of the profile)"),
        ("--method", "its method (default: that of the best student, by mean test accuracy)"),
        ("--arm", "its way to choose the teacher's layers (default: that of the best student)"),
    ):
        export.add_argument(name, help=about)
    seed = "its seed (default: that with the median test accuracy)"
    export.add_argument("--seed", type=int, help=seed)
    folder = "folder to write to (default: work/PROFILE/exports/<name of the record>)"
    export.add_argument("--to", type=Path, metavar="DIR", help=folder)


def _run(options: argparse.Namespace) -> int:
    if not (options.plan or options.check or options.force):
        _print_answer(options.profile)
    from .study.engine.run import run
    from .study.publish.report import conclude

    return run(options, conclude)


def _print_answer(profile: str) -> None:
    """What results that are whole say, before anything is imported that takes a while."""
    from .study.grid.notes import ANSWER, read_notes, shown_note

    paths = StudyPaths(profile)
    if paths.sums.is_file() and ANSWER in read_notes(profile):
        print(f"On record in {shown(paths.results)}: {shown_note(profile, ANSWER)}\n", flush=True)


def _tune(options: argparse.Namespace) -> None:
    from .study.experiments.tuning import tune_all
    from .study.grid.profiles import load_profile

    tune_all(load_profile(options.profile), options.pair, options.method)


def _export(options: argparse.Namespace) -> None:
    from .study.grid.profiles import load_profile
    from .study.publish.export import export_student

    wanted = {name: getattr(options, name) for name in ("pair", "method", "arm", "seed")}
    export_student(load_profile(options.profile), wanted, options.to)


def _keep(options: argparse.Namespace) -> None:
    from .study.grid.profiles import load_profile
    from .study.publish.keep import keep_teachers

    keep_teachers(load_profile(options.profile))


def _verify(options: argparse.Namespace) -> int:
    from .study.publish.verify import verify_folder

    return verify_folder(options.folder, options.profile)


def _stamp(options: argparse.Namespace) -> None:
    from .study.grid.notes import stamp

    stamp(options.profile, options.section)


def _docs(options: argparse.Namespace) -> None:
    from .study.publish.readme import write_pages

    write_pages()


def _slot(options: argparse.Namespace) -> int:
    from .study.engine.execution import run_in_slot

    return run_in_slot(options.rest)


def _train(options: argparse.Namespace) -> None:
    from .study.grid.cells import run_cell
    from .study.grid.profiles import load_profile

    profile = load_profile(options.profile)
    run_cell(profile, profile.pair(options.pair), options.method)


def _fork(options: argparse.Namespace) -> None:
    from .study.engine.execution import fork_steps

    fork_steps(options.profile, int(options.listener))


def _take_over(options: argparse.Namespace) -> None:
    from .study.engine.take_over import finish_step

    finish_step(options.profile, options.step, options.key)


def _gradients(options: argparse.Namespace) -> None:
    from .gradients import print_differences

    print_differences()
