"""The folders of the study. No other file builds a path.

Three environment variables move the roots, for scratch disks and for tests:
``PURSUHINT_DATA`` (data sets), ``PURSUHINT_WORK`` (checkpoints and caches) and
``PURSUHINT_RESULTS`` (what is committed).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# The checkout: the folder that holds pursuhint_lib/, notebooks/ and config/.
ROOT = Path(__file__).resolve().parent.parent

NOTEBOOKS = ROOT / "notebooks"
CONFIG = ROOT / "config"
SNAKEFILE = ROOT / "workflow" / "Snakefile"
# What the report is made of: a page, its style and its script.
TEMPLATES = ROOT / "pursuhint_lib" / "templates"

# Ending of a figure's vector image.
VECTOR = ".svg"
# Checksums of all files of a results folder.
SUMS = "SHA256SUMS"


def _root(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or ROOT / default).expanduser().resolve()


def data_root() -> Path:
    """Folder that holds the data sets."""
    return _root("PURSUHINT_DATA", "data")


def work_root() -> Path:
    """Folder for checkpoints, caches and logs; can be deleted at the price of time."""
    return _root("PURSUHINT_WORK", "work")


def results_root() -> Path:
    """Folder of the committed results, one sub-folder per profile."""
    return _root("PURSUHINT_RESULTS", "results")


def array_cache(dataset: str) -> Path:
    """File of a data set decoded to one uint8 array."""
    return work_root() / "data" / f"{dataset}.arrays"


def sample_tree() -> Path:
    """Image tree in ImageNet's form that is made from CIFAR-100."""
    return work_root() / "data" / "imagenet-sample"


def tool_folder(variable: str) -> Path:
    """Folder of a tool that is called, in place of the one in the user's home to which a variable points."""
    return work_root() / "tools" / variable.lower()


def gpu_lock(card: str) -> Path:
    """Lock file of one GPU, by its number, UUID or MIG name, so that a job has its card for itself."""
    return work_root() / f"gpu-{file_name(card)}.lock"


def teacher_file(name: str) -> Path:
    """Checkpoint of a public teacher; a file put there by hand is used too."""
    return work_root() / "teachers" / f"{file_name(name)}.pth"


def teacher_download(address: str) -> Path:
    """What an address gave: an archive of several teachers, or a checkpoint that is not checked yet."""
    return work_root() / "teachers" / "downloads" / file_name(address.removeprefix("https://"))


def teachers_lock() -> Path:
    """Lock file of the public teachers, so that two processes do not write one download."""
    return work_root() / "teachers" / "lock"


def manifest_entry(weights: Path) -> Path:
    """File beside a teacher's weights that says what they are."""
    return weights.with_suffix(".json")


def notes_file(profile: str) -> Path:
    """File with what a person has written about the results of a profile."""
    return CONFIG / "notes" / f"{profile}.md"


def file_name(network: str) -> str:
    """A name as part of a file name (``torchvision/resnet18`` has a slash, an import path such as
    ``my_methods:mine`` a colon).
    """
    return network.replace("/", "_").replace(":", ".")


def step_name(notebook: str, *parts: str) -> str:
    """Name of one execution of a notebook: its stem and what it was run for."""
    return "-".join([notebook, *(file_name(str(part)) for part in parts)])


def _place(root: Callable[[], Path], pattern: str):
    """A file or folder of a profile below a root; with ``{}`` in its pattern a function of as many names."""

    def path(paths: "StudyPaths", *names: object) -> Path:
        return root() / paths.profile / pattern.format(*(file_name(str(name)) for name in names))

    return path if "{}" in pattern else property(path)


@dataclass(frozen=True)
class StudyPaths:
    """The folders and files of one profile.

    **Arguments:**

    - ``profile``: name of the profile, which is also the folder name.
    """

    profile: str

    # What is committed. Of a teacher: similarity matrices and sub-blocks; hint layers of every arm for k of
    # them, and these under changes that should not matter. Of a trained network: what was measured of its
    # export; a teacher's weights that are kept.
    results = _place(results_root, "")
    records = _place(results_root, "records")
    figures = _place(results_root, "figures")
    tables = _place(results_root, "tables")
    notebooks = _place(results_root, "notebooks")
    report = _place(results_root, "report.html")
    index = _place(results_root, "index.html")
    # Of a step, by its name: the parts of a page that show what it published, and its numbers by name.
    fragments = _place(results_root, "fragments/{}.json")
    numbers = _place(results_root, "numbers/{}.json")
    sums = _place(results_root, SUMS)
    hints = _place(results_root, "hints")
    similarity = _place(results_root, "hints/{}-similarity.json")
    hint_points = _place(results_root, "hints/{}-k{}.json")
    stability = _place(results_root, "hints/{}-k{}-stability.json")
    exports = _place(results_root, "exports")
    measurement = _place(results_root, "exports/{}.json")
    kept_weights = _place(results_root, "teachers/{}.safetensors")
    # Attention maps of one trained network, and the test images that those of a profile are of.
    maps = _place(results_root, "maps/{}.npz")
    map_images = _place(results_root, "maps/images.npz")

    # Weights of the hint losses that were chosen on held-out images, and the lock of whoever writes them.
    tuned_weights = _place(results_root, "weights.json")
    tuning_lock = _place(work_root, "weights.lock")

    # Of a run of the study; at the socket ``forks`` its steps are asked for.
    work = _place(work_root, "")
    plan = _place(work_root, "plan.json")
    run_lock = _place(work_root, "run.json")
    forks = _place(work_root, "forks")
    engine_log = _place(work_root, "engine.log")

    # Of a training or a trained network, by the name of its record: the files of its export, final weights,
    # the state of an unfinished training, and a line of JSON per epoch and student while it runs.
    exported = _place(work_root, "exports/{}")
    weights = _place(work_root, "weights/{}.safetensors")
    checkpoint = _place(work_root, "checkpoints/{}.pt")
    metrics = _place(work_root, "metrics/{}.jsonl")

    # Of a step, by its name: a stamp that it is done with the settings behind a key, its notebook under
    # execution, the paths that this has published so far, what it prints, and how far it is.
    stamp = _place(work_root, "steps/{}-{}.json")
    draft = _place(work_root, "notebooks/{}.ipynb")
    outputs_log = _place(work_root, "published/{}.txt")
    step_log = _place(work_root, "logs/{}.log")
    progress = _place(work_root, "progress/{}.json")


def kept_by_all(name: str) -> list[Path]:
    """Kept weights of that name, in the results of every profile."""
    return sorted(results_root().glob(f"*/teachers/{file_name(name)}.safetensors"))


def shown(path: Path) -> str:
    """A path as seen from the checkout, where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
