"""A trainee of a training, one objective with its optimiser and history; the training of several side by
side; and how well a network answers.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product, zip_longest
from pathlib import Path

import torch
import torch.distributed.nn.functional as differentiable
from accelerate import Accelerator
from torch import Tensor, nn

from ..data import Batch, Images, Splits
from ..processes import gathered, of_each, rank, total, world
from ..settings import DistillSettings, StudentSettings, TeacherSettings
from ..taps import evaluating
from .device import autocast
from .objective import FrozenTeacher, Objective, TeacherOutput

# Images that show whether a step draws by chance; some methods need two.
FEW = 4
# Of a teacher, or of one student or several: schedule, seed, precision and the like.
Settings = TeacherSettings | StudentSettings | DistillSettings


class Trainee:
    """One objective with its optimiser and history, ready to be trained.

    **Arguments:**

    - ``name``: of its record.
    - ``objective``: on the device.
    - ``settings``: schedule and precision.
    - ``accelerator``: device and process group.
    - ``to_measure``: steps in which the gradient ratio is still to be measured.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        settings: Settings,
        accelerator: Accelerator,
        to_measure: int = 0,
    ):
        self.name, self.settings, self.accelerator = name, settings, accelerator
        schedule, device = settings.schedule, accelerator.device
        rate = schedule.learning_rate
        optimizer = torch.optim.SGD(
            objective.parameters(),
            lr=torch.tensor(rate, device=device) if device.type == "cuda" else rate,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
        for parameter in objective.parameters():
            # As the first step would leave it, but for parameters that have no gradient yet, with which the
            # fused step cannot work.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        if schedule.sync_batchnorm and accelerator.num_processes > 1:
            objective = over_all_processes(objective, device)
        # Where every parameter has a gradient in every step, looking for those that have none would only take
        # time.
        accelerator.ddp_handler.find_unused_parameters = objective.rests
        with warnings.catch_warnings():
            # accelerate is about to give the option on buffers another name.
            warnings.simplefilter("ignore", FutureWarning)
            self.wrapped, self.optimizer = accelerator.prepare(objective, optimizer)
        self.objective, self.failed = objective, False
        self.history: dict[str, list] = {"epoch": [], "learning_rate": [], "accuracy": []}
        self.sums: dict[str, Tensor] = {}
        # The last evaluation: bool [N], whether each test image was answered rightly.
        self.right: Tensor | None = None
        # Steps taken, and the first of them (from 1) whose loss was not finite; 0 while there is none. On the
        # device, so that nothing waits.
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.broke = torch.zeros_like(self.steps)
        # Sum and number of the gradient ratios that were measured.
        self.to_measure, self.ratios = to_measure, torch.zeros(2, device=device)

    def prepare(self, epoch: int) -> None:
        """Ready for steps of this epoch (from 0)."""
        self.wrapped.train()
        self.objective.epoch, self.objective.epochs = epoch, self.settings.schedule.epochs
        rate = self.settings.schedule.learning_rate_at(epoch)
        for group in self.optimizer.param_groups:
            # On a GPU a tensor, which recorded steps read at its place.
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate

    def step(self, batch: Batch, teacher: TeacherOutput | None, share: float = 1.0) -> None:
        """One optimiser step; losses are added up on the device, so that nothing waits for it.

        ``share`` is this process's part of the batch, 1 for an equal one: gradients are averaged over
        processes as if parts were equal.
        """
        with autocast(self.accelerator.device, self.settings.precision):
            parts = self.wrapped(*batch, teacher)
        if self.to_measure:
            self.to_measure -= 1
            ratio = gradient_ratio(self.objective, parts)
            if ratio is not None:
                self.ratios += torch.where(
                    ratio.isfinite(), torch.stack([ratio, torch.ones_like(ratio)]), 0.0
                )
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(parts["total"] * share)
        self.optimizer.step()
        self.steps += 1
        self.broke.copy_(
            torch.where((self.broke == 0) & ~torch.isfinite(parts["total"].detach()), self.steps, self.broke)
        )
        for name, loss in parts.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(loss)
            self.sums[name].add_(loss.detach() * len(batch.labels))

    @property
    def gradient_ratio(self) -> float | None:
        """Mean over the measured steps in which it was finite; nothing where there were none."""
        summed, steps = self.ratios.tolist()
        return _rounded(summed / steps) if steps else None

    def measure(self, test: Images) -> dict[str, float]:
        """``accuracies`` on the test images, to three digits; which of them are answered rightly is kept."""
        rows = answers(self.objective.network, test, self.settings.precision)
        self.right = rows[:, 0]
        return {name: round(value, 3) for name, value in accuracies(rows).items()}

    def close_epoch(self, epoch: int, images: int, measured: dict[str, float]) -> None:
        """Write the epoch into the history; a loss or a weight that is not finite ends the run as failed."""
        means = {name: float(total(summed)) / images for name, summed in self.sums.items()}
        self.sums = {}
        finite = torch.stack(
            [parameter.detach().isfinite().all() for parameter in self.objective.parameters()]
        ).all()
        self.failed = not math.isfinite(means["total"]) or not finite
        if self.failed:
            steps = gathered(self.broke[None])
            # None if it was the gradient of the last step that was not finite, and not its loss.
            self.broke.copy_(steps[steps > 0].min() if steps.any() else self.steps)
        losses = {f"loss_{name}": _rounded(mean) for name, mean in means.items()}
        row = {
            "epoch": epoch + 1,
            "learning_rate": _rounded(self.settings.schedule.learning_rate_at(epoch)),
            "accuracy": None,
            **measured,
            **losses,
        }
        for column in {**self.history, **row}:
            # A loss that only some epochs have is missing in the others.
            self.history.setdefault(column, [None] * epoch).append(row.get(column))


@dataclass(frozen=True)
class Training:
    """Trainees that learn side by side, and what they share.

    **Arguments:**

    - ``settings``: of the teacher, or of the students.
    - ``trainees``, ``splits``: who learns, and what.
    - ``accelerator``: device and process group.
    - ``label``: names the work to whoever watches.
    - ``checkpoint``: file that the state is saved in now and then; whoever trains removes it.
    - ``metrics``: file that gets a line per epoch and trainee.
    - ``teacher``: asked once a batch; not given where nobody asks.
    """

    settings: Settings
    trainees: Sequence[Trainee]
    splits: Splits
    accelerator: Accelerator
    label: str
    checkpoint: Path
    metrics: Path
    teacher: FrozenTeacher | None = None

    @property
    def running(self) -> list[Trainee]:
        """The trainees that have not failed."""
        return [trainee for trainee in self.trainees if not trainee.failed]

    def ask(self, batch: Batch) -> TeacherOutput | None:
        """What the teacher says of a batch."""
        with autocast(self.accelerator.device, self.settings.precision):
            return self.teacher(batch.images) if self.teacher else None

    @cached_property
    def draws(self) -> bool:
        """Whether a training step draws by chance, in a network or in what a method trains: copies that take
        one, without learning, move the state of torch's generators then.
        """
        device, few = self.accelerator.device, torch.arange(min(FEW, len(self.splits.train)))
        images, labels = next(self.splits.train.at(few).ordered_batches())
        batch, epochs = Batch(images, labels, few.to(device)), self.settings.schedule.epochs
        output = self.ask(batch)
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
            begun = _generators()
            # Some methods do one thing in their first epochs and another in their last.
            for trainee, epoch in product(self.trainees, {0, epochs - 1}):
                objective = copy.deepcopy(trainee.objective).train()
                objective.epoch, objective.epochs = epoch, epochs
                with autocast(device, self.settings.precision):
                    objective(*batch, output)
            return not torch.equal(begun, _generators())


def _generators() -> Tensor:
    """State of torch's generators, on the CPU and on every GPU."""
    return torch.cat([torch.get_rng_state(), *torch.cuda.get_rng_state_all()])


def gradient_ratio(objective: Objective, parts: dict[str, Tensor]) -> Tensor | None:
    """ρ = ‖gradient of the weighted hint loss‖ / ‖gradient of the weighted CE + KD‖, over the student's own
    parameters.

    **Arguments:** ``parts`` the losses that the objective has just given; their graph stays for the
    training's own gradient.

    **Returns:** a scalar; nothing where the epoch has only one of the two.
    """
    weights = objective.weights()
    losses = {name: weights[name] * loss for name, loss in parts.items() if weights.get(name)}
    hint, task = losses.pop("hint", None), sum(losses.values())
    if hint is None or not losses:
        return None
    own, norms = list(objective.network.parameters()), []
    for loss in (hint, task):
        gradients = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
        norms.append(nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))
    return norms[0] / norms[1]


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def answers(model: nn.Module, images: Images, precision: str = "fp32") -> Tensor:
    """Which images a model answers rightly; it is left in the mode it was in. Several processes share the
    images out.

    **Returns:** bool [N, 1] in the stored order, or [N, 2] where the data set asks for it: the second column
    says whether the label is among the model's five first.

    **Raises:** ``RuntimeError`` should any image be left out or counted twice.
    """
    parts = []
    with evaluating(model), autocast(images.device, precision):
        for batch, labels in images.ordered_batches(rank=rank(), world=world()):
            logits, labels = model(batch), labels[:, None]
            columns = [logits.argmax(1, keepdim=True) == labels]
            if images.entry.top5:
                columns.append((logits.topk(5).indices == labels).any(1, keepdim=True))
            parts.append(torch.cat(columns, 1))
    # Processes take batches in turn, the first one the most.
    turns = zip_longest(*of_each([part.cpu() for part in parts]))
    rows = torch.cat([part for turn in turns for part in turn if part is not None])
    if len(rows) != len(images):
        raise RuntimeError(f"{len(rows)} images were evaluated, but there are {len(images)}")
    return rows


def accuracies(rows: Tensor) -> dict[str, float]:
    """Top-1 ``accuracy`` in %, and ``top5_accuracy`` where there is a column for it, of what ``answers``
    gives.
    """
    shares = (100 * rows.sum(0) / len(rows)).tolist()
    return dict(zip(("accuracy", "top5_accuracy"), shares, strict=False))


def evaluate(model: nn.Module, images: Images, precision: str = "fp32") -> dict[str, float]:
    """``accuracies`` of a model on these images."""
    return accuracies(answers(model, images, precision))


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those of the images [B, C, H, W] of all processes
    together.

    What ``nn.SyncBatchNorm`` does on GPUs, on CPUs, where that refuses to work.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(images)
        count = total(images.new_tensor(images.numel() // images.shape[1], dtype=torch.float32))
        values = images.float()
        mean = differentiable.all_reduce(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = differentiable.all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            # As in BatchNorm2d, what is remembered is the unbiased variance.
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def over_all_processes(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with every BatchNorm taking its statistics from the whole batch; weights, their names and
    values stay.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # The same object with the same parameters, so that whoever holds it, an optimiser or a hook, goes
            # on.
            module.__class__ = GlobalBatchNorm2d
    return model


@torch.no_grad()
def average_statistics(models: Iterable[nn.Module]) -> None:
    """Running statistics of every BatchNorm become their mean over all processes.

    An average over time is linear, so it does not matter how often this is done, as long as it is before they
    are used.
    """
    layers = [
        m
        for model in models
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    if world() == 1 or not layers:
        return
    buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
    mean = total(torch.cat(buffers)) / world()
    for buffer, values in zip(buffers, mean.split([len(buffer) for buffer in buffers]), strict=True):
        buffer.copy_(values)
