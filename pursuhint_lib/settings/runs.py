"""What one run is made of: images, schedule, teacher, student, and all arms of a student."""

import dataclasses
from dataclasses import dataclass, field

from .user_code import sources
from .values import SettingsError, not_negative, once, positive


@dataclass(frozen=True)
class Data:
    """Images to train and to evaluate on.

    **Arguments:**

    - ``dataset``: name in ``data.DATASETS``.
    - ``train_images``: size of a fixed stratified subset of the training images; all when not given.
    - ``subset_seed``: which subset.
    - ``test_images``: the same for the test images, for smoke tests only.
    - ``root``: folder of an ImageFolder tree, relative to the data folder (``imagefolder`` only).
    - ``image_size``: side in pixels that images of an ImageFolder tree or of ImageNet are decoded to (224 for
      ImageNet when not given).
    - ``classes``: so many classes of ImageNet, evenly spaced in their order; all when not given (``imagenet``
      only).
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
        """Whether the test images are those that a teacher's manifest entry speaks of, at their
        usual size.
        """
        return (
            self.test_images is None
            and self.classes is None
            and (self.image_size is None or self.root is not None)
        )


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum and a step schedule.

    **Arguments:**

    - ``epochs``, ``batch_size``: the batch is the global one, over all processes.
    - ``learning_rate``: multiplied by ``decay`` from each epoch of ``milestones`` on (0-based).
    - ``momentum``, ``weight_decay``: of SGD; the decay acts on every parameter, adapters included.
    - ``evaluate_every``: epochs between two test evaluations; the last epoch is always evaluated.
    - ``sync_batchnorm``: whether BatchNorm takes its statistics from the whole batch where several processes
      share it, not each from its part.
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
            raise SettingsError(
                f"momentum is {self.momentum}, with which every step would be larger than the last; give a "
                "number below 1"
            )
        once("milestones", self.milestones)
        late = [epoch for epoch in self.milestones if not 0 < epoch < self.epochs]
        if late:
            raise SettingsError(
                f"milestones {late} lie outside the {self.epochs} epochs; give epochs between 1 and "
                f"{self.epochs - 1}"
            )

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

    @property
    def sources(self) -> tuple[str, ...]:
        """Checksums of the user's own code behind it, which count as settings."""
        return sources(self.network)


@dataclass(frozen=True)
class Arm:
    """One choice of teacher hint points (module names); empty for no hints.

    ``student_points`` is the point that learns from each of them; the cell's own points, one each, when not
    given.
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

    @property
    def sources(self) -> tuple[str, ...]:
        """Checksums of the user's own code behind it, besides the teacher's."""
        return sources(self.student, self.method)


@dataclass(frozen=True)
class DistillSettings:
    """All arms of one (pair, method, seed): they differ in the teacher's hint points only.

    loss = ``ce_weight``·CE + ``kd_weight``·KD(``temperature``) + ``hint_weight``·method

    ``plain`` is the run of an arm without points where the method has other parts than hints (``wsl`` of
    ``wsl+at``).
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

        An arm without points has no hint loss: it is what remains of the method, and for most that is the
        ``kd`` run of the same weights (``ce`` when the KD weight is 0), shared by them all. An arm with more
        teacher points than the student has points shares the weight out among them.
        """
        shared = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(StudentSettings)
            if hasattr(self, f.name)
        }
        if arm.teacher_points:
            students = arm.student_points or self.student_points
            weight = self.hint_weight * len(self.student_points) / len(arm.teacher_points)
            return StudentSettings(
                **{**shared, "student_points": students, "hint_weight": weight},
                teacher_points=arm.teacher_points,
            )
        if self.plain:
            return self.plain
        if not self.student_points and self.hint_weight:
            # A method on the logits has no points in any arm.
            return StudentSettings(**shared, teacher_points=())
        plain = {
            "method": "kd" if self.kd_weight else "ce",
            "hint_weight": 0.0,
            "student_points": (),
            "teacher_points": (),
            "part_weights": (),
        }
        return StudentSettings(**{**shared, **plain})
