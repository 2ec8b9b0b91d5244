"""What a study is made of: pairs, methods, arms and seeds on one data set with one recipe."""

import re
from dataclasses import field, replace
from typing import Annotated

from pydantic import Field, StrictBool, StrictInt

from .runs import PRECISIONS, Data, Schedule, TeacherSettings
from .user_code import sources
from .values import (
    AtLeastOne,
    Count,
    NotNegative,
    Once,
    Positive,
    Seed,
    SettingsError,
    Text,
    choose,
    once,
    validated,
)


@validated
class Pair:
    """A teacher and a student.

    **Arguments:**

    - ``teacher``, ``student``: a network, by name or by import path.
    - ``student_points``: the student's hint layers; its stage ends when not given.
    - ``k``: number of hint layers; must equal the number of the student's.
    - ``methods``: those of the profile's methods with hints that this pair takes part in; all when not given.
    - ``seeds``: how many of the profile's seeds; all when not given.
    """

    teacher: Text
    student: Text
    student_points: Once[Text] = ()
    k: Count | None = None
    methods: Once[Text] = ()
    seeds: Count | None = None

    @property
    def name(self) -> str:
        return f"{self.teacher}-{self.student}".replace("/", "_").replace(":", ".")


@validated
class Weights:
    """Weights of the loss.

    **Arguments:**

    - ``ce``: weight of the cross-entropy with the labels.
    - ``kd``: weight of the KL divergence from the teacher's logits.
    - ``temperature``: softens the logits for KD.
    - ``hint``: method → weight of its hint loss, in place of the literature's or of a tuned one.
    - ``tuned_by``: a profile whose tuned weights this one takes.
    """

    ce: NotNegative = 1.0
    kd: NotNegative = 1.0
    temperature: Positive = 4.0
    hint: dict[Text, NotNegative] = field(default_factory=dict)
    tuned_by: Text | None = None


@validated
class Stability:
    """What is varied to see how far the hint layers depend on chance.

    **Arguments:**

    - ``draws``: bootstrap samples of the images.
    - ``images``: numbers of images to try, besides all of them; those that the data set does not have are
      left out.
    - ``teacher_seeds``: further teachers, trained for this from other seeds.
    """

    draws: Count = 50
    images: tuple[Count, ...] = (1_000, 3_000, 10_000)
    teacher_seeds: tuple[Seed, ...] = ()


@validated
class Sweep:
    """How the weight of the hint loss is varied, on the first pair.

    **Arguments:**

    - ``method``: one with hints.
    - ``weights``: those to try, besides that of the grid and 0, which is the arm ``none``.
    - ``arms``: those with hints to try, in the grid or not.
    - ``seeds``: how many of the profile's seeds.
    """

    method: Text
    weights: AtLeastOne[Positive]
    arms: Once[Text]
    seeds: Count


@validated
class Exchange:
    """How the deepest hint layer is told from the others: the stage ends and the paper's layers with theirs
    exchanged.

    **Arguments:**

    - ``metric``: by which the paper's layers are chosen.
    - ``methods``: those of the profile's with hints; all when not given.
    """

    metric: Text
    methods: Once[Text] = ()


@validated
class Tuning:
    """How the weight of the hint loss is chosen: by the accuracy on training images that are held out.

    **Arguments:**

    - ``methods``: each with hints → the weights to begin with, best a decade apart.
    - ``arms``: the sets of layers; a weight is chosen for all of them together.
    - ``seeds``: of the students that the weight is chosen by; none of the comparison's.
    - ``held_out``: so many training images, which the students of the comparison do not learn from either.
    - ``pairs``: name of a pair → its own methods, of those above. The first pair has all of them; a pair that
      is not named takes the weights of the first.
    """

    methods: Annotated[dict[Text, AtLeastOne[Positive]], Field(min_length=1)]
    arms: AtLeastOne[Text]
    seeds: AtLeastOne[Seed]
    held_out: Count
    pairs: dict[Text, tuple[Text, ...]] = field(default_factory=dict)

    def __post_init__(self):
        for method in (method for methods in self.pairs.values() for method in methods):
            choose("method in pairs of the tuning", method, self.methods)


@validated
class Launch:
    """Training of students in processes of their own, which share every batch.

    **Arguments:**

    - ``processes``: how many on this machine; one per GPU when not given.
    """

    processes: Count | None = None


@validated
class Profile:
    """A study: every pair × method × arm × seed, on one data set with one recipe.

    **Arguments:**

    - ``name``: of the study and of its folder under results/.
    - ``title``: shown to readers. ``note``: stands on every figure.
    - ``data``: the images. ``teacher``: schedule of the teachers. ``student``: schedule of the students.
    - ``pairs``: each a teacher and a student. ``methods``: ways to learn; ``kd`` and ``ce`` have no arms.
    - ``arms``: ways to choose the teacher's hint layers.
    - ``seeds``: of the students; every pair, method and arm is trained from each.
    - ``metrics``: similarity metrics to profile the teachers with.
    - ``weights``: of the losses.
    - ``precision``: of the networks: ``fp32``, ``bf16``, or ``auto``, which is ``bf16`` where the hardware
      has it.
    - ``deterministic``: whether every run gives the same bits on the same kind of machine
      (``training.device``), at some cost of speed.
    - ``profile_images``: training images used to compare the teacher's layers.
    - ``teacher_seed``: seed of the teachers. ``checkpoints``: files of teachers not trained here.
    - ``stability``: what is varied to see how far the hint layers depend on chance.
    - ``example_pair``: what notebook 06 forks the profile with; the notebook is left out when not given.
    - ``student_images``: training images of the students, the same number of each class, where that is fewer
      than the teachers have.
    - ``fewer_seeds``: method with hints → how many of the seeds it takes, where that is not all.
    - ``sweeps``: how notebook 09 varies the weight of the hint loss, one method each; left out when there are
      none.
    - ``exchange``: how notebook 10 tells the deepest hint layer from the others; left out when not given.
    - ``contrasts``: arm → the arm that it is compared with in notebook 15: the comparisons that were named
      before the runs; left out when there are none.
    - ``tuning``: how notebook 11 chooses the weight of the hint loss; the literature's is taken when not
      given.
    - ``notebooks``: the notebooks, or steps as ``--plan`` names them, that are executed; all when not given.
    - ``launch``: how notebook 04 trains the students in processes of their own; in notebook 03's own process
      when not given.
    - ``shortcut_seeds``: over how many seeds notebook 07 compares the fast ways to train with the plain one;
      left out when 0.
    """

    name: Text
    title: Text
    data: Data
    teacher: Schedule
    student: Schedule
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]
    methods: AtLeastOne[Text]
    arms: AtLeastOne[Text]
    seeds: AtLeastOne[Seed]
    metrics: AtLeastOne[Text] = ("r2", "cka-linear", "cka-rbf")
    weights: Weights = Weights()
    precision: Text = "fp32"
    deterministic: StrictBool = False
    profile_images: Count = 10_000
    teacher_seed: Seed = 0
    checkpoints: dict[Text, Text] = field(default_factory=dict)
    note: Text = ""
    example_pair: Pair | None = None
    stability: Stability = Stability()
    launch: Launch | None = None
    shortcut_seeds: Annotated[StrictInt, Field(ge=0)] = 0
    student_images: Count | None = None
    fewer_seeds: dict[Text, Count] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    exchange: Exchange | None = None
    contrasts: dict[Text, Text] = field(default_factory=dict)
    tuning: Tuning | None = None
    notebooks: Once[Text] = ()

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,99}", self.name):
            raise SettingsError(
                f"name {self.name!r} cannot be a folder; use at most 100 letters, digits, '.', '_' and '-'"
            )
        # Results are kept by the pair's name, so two pairs must not share one.
        once([pair.name for pair in self.pairs], "pairs")
        once([sweep.method for sweep in self.sweeps], "sweeps")
        once(
            (self.teacher_seed, *self.stability.teacher_seeds),
            "teacher_seed and stability.teacher_seeds together",
        )
        if self.shortcut_seeds == 1:
            raise SettingsError("shortcut_seeds is 1; give 2 or more, or 0 for no comparison")
        choose("precision", self.precision, PRECISIONS)
        total = len(self.seeds)
        for what, count, most in [
            *((f"fewer_seeds of {method}", count, total - 1) for method, count in self.fewer_seeds.items()),
            *((f"seeds of pair {pair.name}", pair.seeds or 1, total) for pair in self.pairs),
            *((f"seeds of the sweep of {sweep.method}", sweep.seeds, total) for sweep in self.sweeps),
        ]:
            if count > most:
                raise SettingsError(f"{what} is {count}, but the profile has {total}; give 1 to {most}")
        if self.tuning:
            self._check_tuning(self.tuning)

    def _check_tuning(self, tuning: Tuning) -> None:
        """Refuse a search for weights whose seeds or pairs cannot be."""
        shared = sorted({*tuning.seeds} & {*self.seeds})
        if shared:
            raise SettingsError(
                f"seeds of the tuning are {list(tuning.seeds)}, but the comparison has "
                f"{', '.join(map(str, shared))} too; give others"
            )
        if self.weights.tuned_by:
            raise SettingsError("tuning and weights.tuned_by are both given; leave one of them out")
        for pair in tuning.pairs:
            choose(
                "pair after the first, which is tuned anyway,", pair, [pair.name for pair in self.pairs[1:]]
            )

    @property
    def all_pairs(self) -> tuple[Pair, ...]:
        """The pairs of the grid, and that of notebook 06."""
        return (*self.pairs, *([self.example_pair] if self.example_pair else []))

    @property
    def named(self) -> tuple[str, ...]:
        """Names of methods, metrics and networks, any of which may be an import path."""
        networks = (network for pair in self.all_pairs for network in (pair.teacher, pair.student))
        return (*self.methods, *self.weights.hint, *self.metrics, *networks)

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

    @property
    def tuning_data(self) -> Data:
        """The images that students learn, and training images that are held out in the place of the test
        images.
        """
        return replace(self.student_data, test_images=None, held_out=self.tuning.held_out)

    @property
    def tuned(self) -> list[tuple[Pair, str]]:
        """(pair, method) of the profile whose weight is tuned, the first pair first."""
        if self.tuning is None:
            return []
        methods = {self.pairs[0].name: tuple(self.tuning.methods)} | self.tuning.pairs
        return [
            (pair, method)
            for pair in self.pairs
            for method in methods.get(pair.name, ())
            if method in self.methods
        ]

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
