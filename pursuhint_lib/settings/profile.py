"""What a study is made of: pairs, methods, arms and seeds on one data set with one recipe."""

import math
import re
from dataclasses import dataclass, field, replace

from .runs import MAX_SEED, PRECISIONS, Data, Schedule, TeacherSettings
from .user_code import sources
from .values import SettingsError, choose, not_negative, once, positive


@dataclass(frozen=True)
class Pair:
    """A teacher and a student.

    **Arguments:**

    - ``teacher``, ``student``: names for ``models.build_model``.
    - ``student_points``: the student's hint points; its stage ends when not given.
    - ``k``: number of hint points; must equal the number of student points.
    - ``methods``: those of the profile's methods with hints that this pair takes part in; all when not given.
    - ``seeds``: how many of the profile's seeds; all when not given.
    """

    teacher: str
    student: str
    student_points: tuple[str, ...] = ()
    k: int | None = None
    methods: tuple[str, ...] = ()
    seeds: int | None = None

    def __post_init__(self):
        positive(self, "k", "seeds")
        once("student_points", self.student_points)
        once("methods", self.methods)

    @property
    def name(self) -> str:
        return f"{self.teacher}-{self.student}".replace("/", "_").replace(":", ".")


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
    - ``images``: numbers of images to try, besides all of them; those that the data set does not have are
      left out.
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
class Sweep:
    """How the weight of the hint loss is varied, on the first pair.

    **Arguments:** ``method``; ``weights`` besides that of the grid and 0, which is the arm ``none``; ``arms``
    with hints, in the grid or not; ``seeds`` how many of the profile's.
    """

    method: str
    weights: tuple[float, ...]
    arms: tuple[str, ...]
    seeds: int

    def __post_init__(self):
        positive(self, "seeds")
        once("weights", self.weights)
        once("arms", self.arms)
        if not self.weights or not min(self.weights) > 0 or not math.isfinite(max(self.weights)):
            raise SettingsError(
                f"weights of the sweep of {self.method} are {list(self.weights)}; give numbers above 0"
            )


@dataclass(frozen=True)
class Exchange:
    """How the deepest hint point is told from the others: the stage ends and the paper's points with theirs
    exchanged.

    **Arguments:** ``metric`` of the paper's points; ``methods`` those of the profile's with hints; all when
    not given.
    """

    metric: str
    methods: tuple[str, ...] = ()

    def __post_init__(self):
        once("methods", self.methods)


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
    - ``weights``: of the losses. ``precision``: ``fp32``, ``bf16``, or ``auto``: ``bf16`` where the hardware
      has it.
    - ``deterministic``: whether every run gives the same bits on the same kind of machine
      (``training.determinism``), at some cost of speed.
    - ``profile_images``: training images used to compare the teacher's layers.
    - ``teacher_seed``: seed of the teachers. ``checkpoints``: files of teachers not trained here.
    - ``margin``: accuracy difference, in points, that is too small to matter.
    - ``stability``: what is varied to see how far the hint points depend on chance.
    - ``example_pair``: what notebook 06 forks the profile with; the notebook is left out when not given.
    - ``student_images``: training images of the students, the same number of each class, where that is fewer
      than the teachers have.
    - ``fewer_seeds``: method with hints → how many of the seeds it takes, where that is not all.
    - ``sweeps``: how notebook 09 varies the weight of the hint loss, one method each; left out when there are
      none.
    - ``exchange``: how notebook 10 tells the deepest hint point from the others; left out when not given.
    - ``launch``: how notebook 04 trains the students in processes of their own; in notebook 03's own process
      when not given.
    - ``shortcut_seeds``: over how many seeds notebook 07 compares the fast ways to train with the plain one;
      left out when 0.
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
    student_images: int | None = None
    fewer_seeds: dict[str, int] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    exchange: Exchange | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,99}", self.name):
            raise SettingsError(
                f"name {self.name!r} cannot be a folder; use at most 100 letters, digits, '.', '_' and '-'"
            )
        for key in ("pairs", "methods", "arms", "seeds", "metrics"):
            # Results are kept by the pair's name, so two pairs must not share one.
            values = [pair.name for pair in self.pairs] if key == "pairs" else getattr(self, key)
            if not values:
                raise SettingsError(f"{key} is empty; give at least one")
            once(key, values)
        if self.shortcut_seeds < 0 or self.shortcut_seeds == 1:
            raise SettingsError(
                f"shortcut_seeds is {self.shortcut_seeds}; give 2 or more, or 0 for no comparison"
            )
        teachers = (self.teacher_seed, *self.stability.teacher_seeds)
        if min(*self.seeds, *teachers) < 0 or max(*self.seeds, *teachers) > MAX_SEED:
            raise SettingsError(
                f"seeds are {list(self.seeds)} and those of teachers {list(teachers)}; give numbers of 0 or "
                f"more, up to {MAX_SEED}"
            )
        once("teacher_seed and stability.teacher_seeds together", teachers)
        choose("precision", self.precision, PRECISIONS)
        positive(self, "profile_images", "margin", "student_images")
        for method, count in self.fewer_seeds.items():
            if not 1 <= count < len(self.seeds):
                raise SettingsError(
                    f"fewer_seeds of {method} is {count}; give 1 to {len(self.seeds) - 1}, or leave it out "
                    f"for all {len(self.seeds)}"
                )
        for pair in self.pairs:
            if pair.seeds and pair.seeds > len(self.seeds):
                raise SettingsError(
                    f"pair {pair.name} has {pair.seeds} seeds, but the profile {len(self.seeds)}; give at "
                    "most that"
                )
        once("sweeps", [sweep.method for sweep in self.sweeps])
        for sweep in self.sweeps:
            if sweep.seeds > len(self.seeds):
                raise SettingsError(
                    f"the sweep of {sweep.method} has {sweep.seeds} seeds, but the profile "
                    f"{len(self.seeds)}; give at most that"
                )

    @property
    def named(self) -> tuple[str, ...]:
        """Names of methods, metrics and networks, any of which may be an import path."""
        pairs = (*self.pairs, *([self.example_pair] if self.example_pair else []))
        return (
            *self.methods,
            *self.weights.hint,
            *self.metrics,
            *(network for pair in pairs for network in (pair.teacher, pair.student)),
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """Checksums of the user's own code that it names."""
        return sources(*self.named)

    @property
    def student_data(self) -> Data:
        """The images that students learn: all of the data, or a fixed part."""
        return (
            self.data if self.student_images is None else replace(self.data, train_images=self.student_images)
        )

    def seeds_of(self, pair: Pair, method: str) -> tuple[int, ...]:
        """The seeds that a pair is trained with by a method: the first of the profile's."""
        return self.seeds[: min(pair.seeds or len(self.seeds), self.fewer_seeds.get(method, len(self.seeds)))]

    def pair(self, name: str) -> Pair:
        """The pair of that name, ``<teacher>-<student>``."""
        return {pair.name: pair for pair in self.pairs}[
            choose("pair", name, [pair.name for pair in self.pairs])
        ]

    def sweep(self, method: str) -> Sweep:
        """How the weight of that method's hint loss is varied."""
        return {sweep.method: sweep for sweep in self.sweeps}[
            choose("method with a sweep", method, [sweep.method for sweep in self.sweeps])
        ]

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
