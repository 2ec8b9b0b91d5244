"""What one run is made of: images, schedule, teacher, student, and all arms of a student."""

from dataclasses import field, fields
from typing import Annotated

from pydantic import Field, StrictBool

from .user_code import sources
from .values import Count, NotNegative, Once, Positive, Seed, SettingsError, Text, validated


@validated
class Data:
    """Images to train and to evaluate on.

    **Arguments:**

    - ``dataset``: one of ``data.DATASETS``.
    - ``train_images``: size of a fixed stratified subset of the training images; all when not given.
    - ``subset_seed``: seed of that subset.
    - ``test_images``: the same for the test images, to try the code only.
    - ``held_out``: so many other training images, a fixed stratified subset too, take the place of the test
      images, which are not looked at then.
    - ``root``: folder of an ImageFolder tree, relative to the data folder (``imagefolder`` only).
    - ``image_size``: side in pixels that images of an ImageFolder tree or of ImageNet are decoded to (224 for
      ImageNet when not given).
    - ``classes``: so many classes of ImageNet, evenly spaced in their order; all when not given (``imagenet``
      only).
    """

    dataset: Text
    train_images: Count | None = None
    subset_seed: Seed = 0
    test_images: Count | None = None
    root: Text | None = None
    image_size: Count | None = None
    classes: Count | None = None
    held_out: Count | None = None

    def __post_init__(self):
        if self.held_out and self.test_images:
            raise SettingsError(
                "held_out and test_images are both given, but one of them is evaluated; leave one out"
            )

    @property
    def as_published(self) -> bool:
        """Whether the test images are those that a teacher's manifest entry speaks of, at their
        usual size.
        """
        part = (self.test_images, self.held_out, self.classes) != (None, None, None)
        return not part and (self.image_size is None or self.root is not None)


@validated
class Schedule:
    """SGD with momentum and a step schedule.

    **Arguments:**

    - ``epochs``: how often the training images are seen.
    - ``batch_size``: images of a step, of all processes together.
    - ``learning_rate``: that of the first epochs.
    - ``milestones``: epochs (0-based) from which on the learning rate is multiplied by ``decay``, each time.
    - ``decay``: that factor; 0.1 divides by ten.
    - ``momentum``: of SGD. ``weight_decay``: L2 penalty of SGD, on every parameter, adapters included.
    - ``evaluate_every``: epochs between two test evaluations; the last epoch is always evaluated.
    - ``sync_batchnorm``: whether BatchNorm takes its statistics from the whole batch where several processes
      share it, not each from its part.
    """

    epochs: Count
    batch_size: Count
    learning_rate: Positive
    milestones: Once[Count] = ()
    decay: Positive = 0.1
    # From 1 on every step would be larger than the last.
    momentum: Annotated[NotNegative, Field(lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4
    evaluate_every: Count = 1
    sync_batchnorm: StrictBool = False

    def __post_init__(self):
        late = [epoch for epoch in self.milestones if epoch >= self.epochs]
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


@validated
class TeacherSettings:
    """A teacher: trained here, or read from ``checkpoint`` (a file, relative to the checkout)."""

    network: Text
    data: Data
    schedule: Schedule
    seed: Seed = 0
    precision: Text = "fp32"
    checkpoint: Text | None = None
    deterministic: StrictBool = False
    # Where the record goes; not part of what the run is.
    profile: Text = field(default="", metadata={"hashed": False})

    @property
    def sources(self) -> tuple[str, ...]:
        """Checksums of the user's own code behind it, which count as settings."""
        return sources(self.network)


@validated
class Arm:
    """One choice of the teacher's hint layers (module names); empty for no hints.

    ``student_points`` is the layer that learns from each of them; the cell's own, one each, when not given.
    ``hint_weight`` of this arm; the cell's when not given.
    """

    name: Text
    teacher_points: tuple[Text, ...] = ()
    student_points: tuple[Text, ...] = ()
    hint_weight: NotNegative | None = None


@validated
class _Training:
    """What decides the outcome of a student's training, besides the teacher's hint layers.

    loss = ``ce_weight``·CE + ``kd_weight``·KD(``temperature``) + ``hint_weight``·method
    """

    teacher: TeacherSettings
    student: Text
    method: Text
    student_points: tuple[Text, ...]
    ce_weight: NotNegative
    kd_weight: NotNegative
    hint_weight: NotNegative
    temperature: Positive
    data: Data
    schedule: Schedule
    seed: Seed
    precision: Text = "fp32"
    # Weights of the parts of a sum such as at+rkd, inside ``hint_weight``.
    part_weights: tuple[NotNegative, ...] = ()
    deterministic: StrictBool = False


@validated
class StudentSettings(_Training):
    """One training of one student: everything that decides its outcome, and nothing else."""

    teacher_points: tuple[Text, ...] = field(kw_only=True)

    @property
    def sources(self) -> tuple[str, ...]:
        """Checksums of the user's own code behind it, besides the teacher's."""
        return sources(self.student, self.method)


@validated
class DistillSettings(_Training):
    """All arms of one (pair, method, seed): they differ in the teacher's hint layers, and in the hint weight
    where an arm has its own.

    ``plain`` is the run of an arm without points where the method has other parts than hints (``wsl`` of
    ``wsl+at``).
    """

    arms: tuple[Arm, ...] = field(kw_only=True)
    plain: StudentSettings | None = None
    profile: Text = field(default="", metadata={"hashed": False})
    # Whether attention maps of the students are kept when they are trained (``attention.keep_maps``).
    keep_maps: StrictBool = field(default=False, metadata={"hashed": False})

    def run(self, arm: Arm) -> StudentSettings:
        """The run behind one arm.

        An arm without points has no hint loss: it is what remains of the method, and for most that is the
        ``kd`` run of the same weights (``ce`` when the KD weight is 0), shared by them all. An arm with more
        teacher points than the student has points shares the weight out among them.
        """
        shared = {f.name: getattr(self, f.name) for f in fields(_Training)}
        if arm.teacher_points:
            students = arm.student_points or self.student_points
            given = self.hint_weight if arm.hint_weight is None else arm.hint_weight
            weight = given * len(self.student_points) / len(arm.teacher_points)
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
