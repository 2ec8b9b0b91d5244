"""The folders of the study. No other file builds a path.

Three environment variables move the roots, for scratch disks and for tests:
``PURSUHINT_DATA`` (data sets), ``PURSUHINT_WORK`` (checkpoints and caches) and
``PURSUHINT_RESULTS`` (what is committed).
"""

import os
from dataclasses import dataclass
from pathlib import Path

# The checkout: the folder that holds pursuhint_lib/, notebooks/ and config/.
ROOT = Path(__file__).resolve().parent.parent

NOTEBOOKS = ROOT / "notebooks"
CONFIG = ROOT / "config"
SNAKEFILE = ROOT / "workflow" / "Snakefile"
# What the report is made of: a page, its style and its script.
TEMPLATES = ROOT / "pursuhint_lib" / "templates"

# Ending of a figure's vector image: compressed SVG, an eighth as large as SVG.
VECTOR = ".svgz"


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
    return work_root() / "data" / f"{dataset}.safetensors"


def sample_tree() -> Path:
    """Image tree in ImageNet's form that is made from CIFAR-100."""
    return work_root() / "data" / "imagenet-sample"


def gpu_lock(index: int) -> Path:
    """Lock file of one GPU, so that a job has its card for itself."""
    return work_root() / f"gpu-{index}.lock"


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


@dataclass(frozen=True)
class StudyPaths:
    """The folders and files of one profile.

    **Arguments:**

    - ``profile``: name of the profile, which is also the folder name.
    """

    profile: str

    @property
    def results(self) -> Path:
        return results_root() / self.profile

    @property
    def work(self) -> Path:
        return work_root() / self.profile

    @property
    def records(self) -> Path:
        return self.results / "records"

    @property
    def figures(self) -> Path:
        return self.results / "figures"

    @property
    def tables(self) -> Path:
        return self.results / "tables"

    @property
    def hints(self) -> Path:
        return self.results / "hints"

    @property
    def notebooks(self) -> Path:
        return self.results / "notebooks"

    @property
    def report(self) -> Path:
        return self.results / "report.html"

    @property
    def plan(self) -> Path:
        return self.work / "plan.json"

    @property
    def run_lock(self) -> Path:
        return self.work / "run.json"

    @property
    def engine_log(self) -> Path:
        return self.work / "engine.log"

    def similarity(self, teacher: str) -> Path:
        """Similarity matrices of one teacher, with the list of its sub-blocks."""
        return self.hints / f"{file_name(teacher)}-similarity.json"

    def hint_points(self, teacher: str, k: int) -> Path:
        """Hint points of every arm for one teacher and one number of points."""
        return self.hints / f"{file_name(teacher)}-k{k}.json"

    def stability(self, teacher: str, k: int) -> Path:
        """Hint points of one teacher under changes that should not matter."""
        return self.hints / f"{file_name(teacher)}-k{k}-stability.json"

    @property
    def exports(self) -> Path:
        return self.results / "exports"

    def measurement(self, record_name: str) -> Path:
        """What was measured of a trained network when it was exported."""
        return self.exports / f"{record_name}.json"

    def exported(self, record_name: str) -> Path:
        """Folder of the files that a trained network was exported to."""
        return self.work / "exports" / record_name

    def weights(self, record_name: str) -> Path:
        """Final weights of one trained network."""
        return self.work / "weights" / f"{record_name}.safetensors"

    def kept_weights(self, record_name: str) -> Path:
        """Weights of one trained teacher that are kept among the results."""
        return self.results / "teachers" / f"{record_name}.safetensors"

    def checkpoint(self, run: str) -> Path:
        """State of an unfinished training."""
        return self.work / "checkpoints" / f"{run}.pt"

    def metrics(self, training: str) -> Path:
        """What a training says of its epochs while it runs, one line of JSON per epoch and student."""
        return self.work / "metrics" / f"{file_name(training)}.jsonl"

    def stamp(self, step: str, key: str) -> Path:
        """Small file that says that a step is done with the settings behind ``key``."""
        return self.work / "steps" / f"{step}-{key}.json"

    def draft(self, step: str) -> Path:
        """Notebook under execution."""
        return self.work / "notebooks" / f"{step}.ipynb"

    def outputs_log(self, step: str) -> Path:
        """What the running notebook has published so far, one path a line."""
        return self.work / "published" / f"{step}.txt"

    def step_log(self, step: str) -> Path:
        return self.work / "logs" / f"{step}.log"

    def usage(self, step: str) -> Path:
        """Time and peak memory of a step's processes, as the workflow engine has measured them."""
        return self.work / "usage" / f"{step}.tsv"

    def progress(self, step: str) -> Path:
        return self.work / "progress" / f"{step}.json"


def file_name(network: str) -> str:
    """A name as part of a file name (``torchvision/resnet18`` has a slash, an import path such as
    ``my_methods:mine`` a colon).
    """
    return network.replace("/", "_").replace(":", ".")


def step_name(notebook: str, *parts: str) -> str:
    """Name of one execution of a notebook: its stem and what it was run for."""
    return "-".join([notebook, *(file_name(str(part)) for part in parts)])
