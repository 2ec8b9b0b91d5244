"""What a run is made of: frozen dataclasses, the profile YAML, and the settings hash.

Names of methods, networks and so on are checked where their registries live
(``study.profile``); here the form is checked: known keys, types and ranges.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .forms import SettingsError, build, choose, not_negative, once, positive, resolved, settings_hash

__all__ = [
    "PRECISIONS", "Arm", "Data", "DistillSettings", "Launch", "Pair", "Profile", "Schedule", "SettingsError", "Stability", "StudentSettings",
    "TeacherSettings", "Weights", "build", "choose", "read_profile", "resolved", "settings_hash",
]  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Images to train and to evaluate on.

    **Arguments:**

    - ``dataset``: name in ``data.DATASETS``.
    - ``train_images``: size of a fixed stratified subset of the training images; all when not given.
    - ``subset_seed``: which subset.
    - ``test_images``: the same for the test images, for smoke tests only.
    - ``root``: folder of an ImageFolder tree, relative to the data folder (``imagefolder`` only).
    - ``image_size``: side in pixels that images of an ImageFolder tree or of ImageNet are decoded to (224 for ImageNet when not given).
    - ``classes``: so many classes of ImageNet, evenly spaced in their order; all when not given (``imagenet`` only).
    """

    dataset: str
    train_images: int | None = None
    subset_seed: int = 0
    test_images: int | None = None
    root: str | None = None
    image_size: int | None = None
    classes: int | None = None

    def __post_init__(self):
        positive(self, "train_images", "test_images", "image_size", "classes")
        not_negative(self, "subset_seed")

    @property
    def as_published(self) -> bool:
        """Whether the test images are those that a teacher's manifest entry speaks of, at their usual size."""
        return self.test_images is None and self.classes is None and (self.image_size is None or self.root is not None)


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum and a step schedule.

    **Arguments:**

    - ``epochs``, ``batch_size``: the batch is the global one, over all processes.
    - ``learning_rate``: multiplied by ``decay`` from each epoch of ``milestones`` on (0-based).
    - ``momentum``, ``weight_decay``: of SGD; the decay acts on every parameter, adapters included.
    - ``evaluate_every``: epochs between two test evaluations; the last epoch is always evaluated.
    - ``sync_batchnorm``: whether BatchNorm takes its statistics from the whole batch where several processes share it, not each from its part.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    evaluate_every: int = 1
    sync_batchnorm: bool = False

    def __post_init__(self):
        positive(self, "epochs", "batch_size", "learning_rate", "evaluate_every", "decay")
        not_negative(self, "momentum", "weight_decay")
        if self.momentum >= 1:
            raise SettingsError(f"momentum is {self.momentum}, with which every step would be larger than the last; give a number below 1")
        once("milestones", self.milestones)
        late = [epoch for epoch in self.milestones if not 0 < epoch < self.epochs]
        if late:
            raise SettingsError(f"milestones {late} lie outside the {self.epochs} epochs; give epochs between 1 and {self.epochs - 1}")

    def learning_rate_at(self, epoch: int) -> float:
        """Learning rate of a 0-based epoch."""
        return self.learning_rate * self.decay ** sum(epoch >= milestone for milestone in self.milestones)


# Of a profile; a run has one of the latter two.
PRECISIONS = ("auto", "fp32", "bf16")
# What every random generator takes.
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class TeacherSettings:
    """A teacher: trained here, or read from ``checkpoint`` (a file, relative to the checkout)."""

    network: str
    data: Data
    schedule: Schedule
    seed: int = 0
    precision: str = "fp32"
    checkpoint: str | None = None
    deterministic: bool = False
    # Where the record goes; not part of what the run is.
    profile: str = field(default="", metadata={"hashed": False})


@dataclass(frozen=True)
class Arm:
    """One choice of teacher hint points (module names); empty for no hints.

    ``student_points`` is the point that learns from each of them; the cell's own points, one each, when not given.
    """

    name: str
    teacher_points: tuple[str, ...] = ()
    student_points: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudentSettings:
    """One training of one student: everything that decides its outcome, and nothing else."""

    teacher: TeacherSettings
    student: str
    method: str
    teacher_points: tuple[str, ...]
    student_points: tuple[str, ...]
    ce_weight: float
    kd_weight: float
    hint_weight: float
    temperature: float
    data: Data
    schedule: Schedule
    seed: int
    precision: str = "fp32"
    # Weights of the parts of a sum such as at+rkd, inside ``hint_weight``.
    part_weights: tuple[float, ...] = ()
    deterministic: bool = False


@dataclass(frozen=True)
class DistillSettings:
    """All arms of one (pair, method, seed): they differ in the teacher's hint points only.

    loss = ``ce_weight``·CE + ``kd_weight``·KD(``temperature``) + ``hint_weight``·method

    ``plain`` is the run of an arm without points where the method has other parts than hints (``wsl`` of ``wsl+at``).
    """

    teacher: TeacherSettings
    student: str
    method: str
    arms: tuple[Arm, ...]
    student_points: tuple[str, ...]
    ce_weight: float
    kd_weight: float
    hint_weight: float
    temperature: float
    data: Data
    schedule: Schedule
    seed: int
    precision: str = "fp32"
    part_weights: tuple[float, ...] = ()
    deterministic: bool = False
    plain: StudentSettings | None = None
    profile: str = field(default="", metadata={"hashed": False})

    def run(self, arm: Arm) -> StudentSettings:
        """The run behind one arm.

        An arm without points has no hint loss: it is what remains of the method, and for most that is the ``kd``
        run of the same weights (``ce`` when the KD weight is 0), shared by them all. An arm with more teacher
        points than the student has points shares the weight out among them.
        """
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(StudentSettings) if hasattr(self, f.name)}
        if arm.teacher_points:
            students = arm.student_points or self.student_points
            weight = self.hint_weight * len(self.student_points) / len(arm.teacher_points)
            return StudentSettings(**{**shared, "student_points": students, "hint_weight": weight}, teacher_points=arm.teacher_points)
        if self.plain:
            return self.plain
        if not self.student_points and self.hint_weight:
            # A method on the logits has no points in any arm.
            return StudentSettings(**shared, teacher_points=())
        plain = {"method": "kd" if self.kd_weight else "ce", "hint_weight": 0.0, "student_points": (), "teacher_points": (), "part_weights": ()}
        return StudentSettings(**{**shared, **plain})


@dataclass(frozen=True)
class Pair:
    """A teacher and a student.

    **Arguments:**

    - ``teacher``, ``student``: names for ``models.build_model``.
    - ``student_points``: the student's hint points; its stage ends when not given.
    - ``k``: number of hint points; must equal the number of student points.
    """

    teacher: str
    student: str
    student_points: tuple[str, ...] = ()
    k: int | None = None

    def __post_init__(self):
        positive(self, "k")
        once("student_points", self.student_points)

    @property
    def name(self) -> str:
        return f"{self.teacher}-{self.student}".replace("/", "_")


@dataclass(frozen=True)
class Weights:
    """Weights of the loss; ``hint`` overrides the literature's weight of a method."""

    ce: float = 1.0
    kd: float = 1.0
    temperature: float = 4.0
    hint: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        positive(self, "temperature")
        not_negative(self, "ce", "kd")
        for method, weight in self.hint.items():
            if not weight >= 0:
                raise SettingsError(f"hint weight of {method} is {weight}; give a number of 0 or more")


@dataclass(frozen=True)
class Stability:
    """What is varied to see how far the hint points depend on chance.

    **Arguments:**

    - ``draws``: bootstrap samples of the images.
    - ``images``: numbers of images to try, besides all of them; those that the data set does not have are left out.
    - ``teacher_seeds``: further teachers, trained for this from other seeds.
    """

    draws: int = 50
    images: tuple[int, ...] = (1_000, 3_000, 10_000)
    teacher_seeds: tuple[int, ...] = ()

    def __post_init__(self):
        positive(self, "draws")
        if min(self.images, default=1) < 1:
            raise SettingsError(f"images are {list(self.images)}; give numbers above 0")


@dataclass(frozen=True)
class Launch:
    """Training of students in processes of their own, which share every batch.

    **Arguments:** ``processes``: how many on this machine; one per GPU when not given.
    """

    processes: int | None = None

    def __post_init__(self):
        positive(self, "processes")


@dataclass(frozen=True)
class Profile:
    """A study: every pair × method × arm × seed, on one data set with one recipe.

    **Arguments:**

    - ``name``: also the folder under results/.
    - ``title``, ``note``: shown to readers; a note stands on every figure.
    - ``data``: the images. ``teacher``, ``student``: the two schedules.
    - ``pairs``, ``methods``, ``arms``, ``seeds``: the grid. ``kd`` and ``ce`` have no arms.
    - ``metrics``: similarity metrics to profile the teachers with.
    - ``weights``: of the losses. ``precision``: ``fp32``, ``bf16``, or ``auto``: ``bf16`` where the hardware has it.
    - ``deterministic``: whether every run gives the same bits on the same kind of machine (``training.determinism``), at some cost of speed.
    - ``profile_images``: training images used to compare the teacher's layers.
    - ``teacher_seed``: seed of the teachers. ``checkpoints``: files of teachers not trained here.
    - ``margin``: accuracy difference, in points, that is too small to matter.
    - ``stability``: what is varied to see how far the hint points depend on chance.
    - ``example_pair``: what notebook 06 forks the profile with; the notebook is left out when not given.
    - ``launch``: how notebook 04 trains the students in processes of their own; in notebook 03's own process when not given.
    - ``shortcut_seeds``: over how many seeds notebook 07 compares the fast ways to train with the plain one; left out when 0.
    """

    name: str
    title: str
    data: Data
    teacher: Schedule
    student: Schedule
    pairs: tuple[Pair, ...]
    methods: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...] = ("r2", "cka-linear", "cka-rbf")
    weights: Weights = Weights()
    precision: str = "fp32"
    deterministic: bool = False
    profile_images: int = 10_000
    teacher_seed: int = 0
    checkpoints: dict[str, str] = field(default_factory=dict)
    margin: float = 0.2
    note: str = ""
    example_pair: Pair | None = None
    stability: Stability = Stability()
    launch: Launch | None = None
    shortcut_seeds: int = 0

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,99}", self.name):
            raise SettingsError(f"name {self.name!r} cannot be a folder; use at most 100 letters, digits, '.', '_' and '-'")
        for key in ("pairs", "methods", "arms", "seeds", "metrics"):
            # Results are kept by the pair's name, so two pairs must not share one.
            values = [pair.name for pair in self.pairs] if key == "pairs" else getattr(self, key)
            if not values:
                raise SettingsError(f"{key} is empty; give at least one")
            once(key, values)
        if self.shortcut_seeds < 0 or self.shortcut_seeds == 1:
            raise SettingsError(f"shortcut_seeds is {self.shortcut_seeds}; give 2 or more, or 0 for no comparison")
        teachers = (self.teacher_seed, *self.stability.teacher_seeds)
        if min(*self.seeds, *teachers) < 0 or max(*self.seeds, *teachers) > MAX_SEED:
            raise SettingsError(f"seeds are {list(self.seeds)} and those of teachers {list(teachers)}; give numbers of 0 or more, up to {MAX_SEED}")
        once("teacher_seed and stability.teacher_seeds together", teachers)
        choose("precision", self.precision, PRECISIONS)
        positive(self, "profile_images", "margin")

    def pair(self, name: str) -> Pair:
        """The pair of that name, ``<teacher>-<student>``."""
        return {pair.name: pair for pair in self.pairs}[choose("pair", name, [pair.name for pair in self.pairs])]

    def teacher_settings(self, network: str, seed: int | None = None) -> TeacherSettings:
        """Settings of one of the profile's teachers, or of the same network trained from another seed."""
        return TeacherSettings(
            network=network,
            data=self.data,
            schedule=self.teacher,
            seed=self.teacher_seed if seed is None else seed,
            precision=self.precision,
            checkpoint=self.checkpoints.get(network) if seed is None else None,
            deterministic=self.deterministic,
            profile=self.name,
        )


def read_profile(path: Path) -> Profile:
    """Read a profile YAML.

    **Raises:** ``SettingsError`` when the file is not YAML or has a key or value that does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
        repeated = _repeated(yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{path} is not a YAML file: {' '.join(str(error).split())}; mend it there") from None
    except RecursionError:
        raise SettingsError(f"{path} is not a YAML file of settings: it is nested too deeply; write it flat") from None
    if repeated:
        raise SettingsError(f"{path.name} gives {repeated.value!r} again in line {repeated.start_mark.line + 1}; leave one of the two")
    return build(Profile, content, path.name)


def _repeated(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """The first key that is given twice in one mapping; YAML would silently take the last of its values."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        # What an alias stands for is looked at once, also where it contains itself.
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                return key
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            waiting.append(value)
    return None
