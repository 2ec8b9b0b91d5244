"""Are these results what their records say? ``python -m pursuhint_lib verify results/PROFILE`` asks
here.

First the checksums of a results folder, which the run that made it has written; then every notebook is
executed again in a scratch folder that holds nothing but the records and the hints, and what it publishes is
compared with what is in the folder.
"""

import base64
import contextlib
import io
import json
import operator
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import PIL.Image

from ...files import replacing, sha256
from ...paths import SUMS, StudyPaths
from ...processes import available_cores
from ...settings import Profile, SettingsError
from ...training.runs import RECORDS_ONLY
from ..engine.estimate import NOTEBOOK_SECONDS, Estimate
from ..engine.execution import engine_command, execute, failed_steps, owned
from ..engine.plan import Step, make_plan, write_plan
from ..grid.profiles import load_profile, whole_source

# What the notebooks publish; the hints are among it, since the points are chosen anew from the similarities.
DRAWN = ("figures", "tables", "fragments", "numbers", "notebooks", "hints")


def sums_file(folder: Path) -> Path:
    """The checksums of a results folder, in the format of sha256sum."""
    return folder / SUMS


def write_sums(folder: Path) -> None:
    """Write the checksums of all records, hints, figures, tables and notebooks of a results folder."""
    lines = [f"{sha256(path)}  {name}\n" for name, path in _files(folder).items()]
    with replacing(sums_file(folder)) as draft:
        draft.write_text("".join(lines), encoding="utf-8")


def changed_files(folder: Path) -> list[str]:
    """What is wrong with the files of a results folder by its checksums, one line each."""
    listed = {}
    for number, line in enumerate(
        sums_file(folder).read_text(encoding="utf-8", errors="replace").splitlines(), start=1
    ):
        parts = re.fullmatch("([0-9a-f]{64})  (.+)", line)
        if parts is None:
            return [f"{sums_file(folder).name}: line {number} is no checksum"]
        listed[parts[2]] = parts[1]
    found = {name: sha256(path) for name, path in _files(folder).items()}
    return _unlike(listed, found, operator.eq, ("is missing", "is not listed", "has changed"))


def _unlike(ours: Mapping, theirs: Mapping, same: Callable, words: tuple[str, str, str]) -> list[str]:
    """A line for each name that only ours has, that only theirs has, or that means something else there."""
    wrong = dict.fromkeys(ours.keys() - theirs.keys(), words[0])
    wrong |= dict.fromkeys(theirs.keys() - ours.keys(), words[1])
    wrong |= {name: words[2] for name in ours.keys() & theirs.keys() if not same(ours[name], theirs[name])}
    return [f"{name} {what}" for name, what in sorted(wrong.items())]


def _files(folder: Path) -> dict[str, Path]:
    """Path inside a results folder → file, sorted; what lies in none of its sub-folders, is hidden or a draft
    does not count.
    """
    found = {
        path.relative_to(folder): path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".tmp"
    }
    names = {
        name.as_posix(): path
        for name, path in found.items()
        if len(name.parts) > 1 and not any(part.startswith(".") for part in name.parts)
    }
    return dict(sorted(names.items()))


def differing_files(folder: Path, again: Path) -> list[str]:
    """What a results folder and the one that was drawn again have not in common, one line each; records are
    not looked at.

    Text is compared byte by byte, pictures pixel by pixel, and in notebooks the pictures, too. The profile
    that a notebook was given is left out: it may be the path of a file, which is another on every machine.
    """
    ours, theirs = (
        {name: path for name, path in _files(root).items() if _is_drawn(name)} for root in (folder, again)
    )
    words = ("is drawn by no notebook", "is missing", "is not what the records give")
    return _unlike(ours, theirs, _same, words)


def _is_drawn(name: str) -> bool:
    return name.partition("/")[0] in DRAWN


def _same(ours: Path, theirs: Path) -> bool:
    a, b = ours.read_bytes(), theirs.read_bytes()
    if a == b:
        return True
    try:
        if ours.suffix == ".png":
            return _pixels(io.BytesIO(a)) == _pixels(io.BytesIO(b))
        return ours.suffix == ".ipynb" and _content(a) == _content(b)
    except (ValueError, LookupError, TypeError, OSError):
        # What cannot be read is not the same.
        return False


def _pixels(picture: io.BytesIO) -> tuple[tuple[int, int], bytes]:
    with PIL.Image.open(picture) as image:
        return image.size, image.convert("RGBA").tobytes()


def _content(text: bytes) -> list:
    """Cells of a notebook, with pixels in place of PNG files and without the value of the parameter
    ``profile``.
    """
    cells = json.loads(text)["cells"]
    for cell in cells:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["source"] = [line for line in cell["source"] if not line.startswith("profile = ")]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = _pixels(
                    io.BytesIO(base64.b64decode(output["data"]["image/png"]))
                )
    return cells


@contextlib.contextmanager
def _scratch(folder: Path, profile: Profile) -> Iterator[Path]:
    """Folders of their own for a profile, with copies of the records and hints, and of the weights that
    another profile has tuned for it, for this process and those that it starts; nothing is trained.
    """
    tuned_by = profile.weights.tuned_by
    tuned = StudyPaths(tuned_by).tuned_weights if tuned_by else None
    with tempfile.TemporaryDirectory(prefix="pursuhint-verify-") as temporary:
        roots = {
            "PURSUHINT_RESULTS": f"{temporary}/results",
            "PURSUHINT_WORK": f"{temporary}/work",
            RECORDS_ONLY: "1",
        }
        before = {name: os.environ.get(name) for name in roots}
        os.environ.update(roots)
        again = StudyPaths(profile.name).results
        if tuned and tuned.is_file():
            copy = StudyPaths(tuned_by).tuned_weights
            copy.parent.mkdir(parents=True)
            shutil.copy(tuned, copy)
        shutil.copytree(
            folder,
            again,
            ignore=lambda inside, _: (
                [name for name in DRAWN if name != "hints"] if Path(inside) == folder else []
            ),
        )
        try:
            yield again
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _execute(profile: Profile, steps: Sequence[Step]) -> list[str]:
    """Execute every notebook from the records, or only those that lack one, telling on stderr how far it is.

    **Returns:** the steps that failed and why, one line each.
    """
    lacking = [step for step in steps if step.runs[0] != step.runs[1]]
    chosen = lacking or steps
    cores = available_cores()
    expected = Estimate({step.name: NOTEBOOK_SECONDS for step in chosen}, cores, 0, 0.0)
    with owned(profile.name) as run, contextlib.redirect_stdout(sys.stderr):
        # What lacks a record would lack it in a second try, too.
        options = ("--retries", "0") if lacking else ()
        command = engine_command(write_plan(profile, chosen, cores, 0), cores, 0, options)
        status = execute(profile.name, run, chosen, expected, command)
    failed = [f"step {name} failed: {reason}" for name, reason in failed_steps(profile.name, chosen)]
    return failed or (
        [f"the notebooks could not be executed: the engine ended with status {status}"] if status else []
    )


def verify(folder: Path, profile: Profile, source: str) -> tuple[list[str], str]:
    """Compare a results folder with its checksums and, if nothing has changed, with what its records give.

    **Returns:** what is wrong, one line each, and what there is to say if nothing is.
    """
    summed = sums_file(folder).is_file()
    if not summed:
        print(
            f"note: {folder} has no {sums_file(folder).name}; it was made before there was one, or its run "
            "is not over",
            file=sys.stderr,
        )
    elif wrong := changed_files(folder):
        return wrong, ""
    with _scratch(folder, profile) as again:
        try:
            steps = make_plan(profile, source)
            wrong = _execute(profile, steps) or differing_files(folder, again)
        except SettingsError as error:
            wrong = [str(error)]
    if wrong:
        # Files are named as in the folder that was asked about.
        return [line.replace(str(again), str(folder)) for line in wrong], ""
    files = _files(folder)
    drawn = sum(map(_is_drawn, files))
    summary = (
        f"{len(steps)} notebooks, executed again from {len(files) - drawn} records, give the same "
        f"{drawn} files"
    )
    return [], f"all {len(files)} files have their checksums; {summary}" if summed else summary


def verify_folder(folder: Path, source: str | None) -> int:
    """Verify a results folder and name every file that is not what the records give.

    **Arguments:** ``source``: its profile, a name in config/ or a YAML file; that of the folder's name when
    not given.

    **Returns:** 0 if all is as it should be, 1 if not.

    **Raises:** ``SettingsError`` where it is no results folder.
    """
    source = source or folder.resolve().name
    if not (folder / "records").is_dir():
        raise SettingsError(f"{folder} is no results folder: it has no records")
    wrong, summary = verify(folder.resolve(), load_profile(source), whole_source(source))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if not wrong:
        print(f"{folder}: {summary}.")
    return 1 if wrong else 0
