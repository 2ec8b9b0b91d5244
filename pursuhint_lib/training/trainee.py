"""A trainee of a training: one objective with its optimiser and history, and the device and precision
it runs in.
"""

import math
import os
import warnings
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from ..data import Batch, Images
from ..processes import agreed, gathered, rank, total, world
from ..settings import PRECISIONS, Schedule, SettingsError, choose
from .normalisation import over_all_processes
from .objective import Objective, TeacherOutput


@dataclass
class Trainee:
    """One objective with what its training needs beside it."""

    name: str
    objective: Objective
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    history: dict[str, list] = field(
        default_factory=lambda: {"epoch": [], "learning_rate": [], "accuracy": []}
    )
    failed: bool = False
    sums: dict[str, Tensor] = field(default_factory=dict)
    # The last evaluation: bool [N], whether each test image was answered rightly.
    right: Tensor | None = None
    # Steps taken, and the first of them (from 1) whose loss was not finite; 0 while there is none. On the
    # device, so that nothing waits.
    steps: Tensor | None = None
    broke: Tensor | None = None
    # Steps in which the gradient ratio is still to be measured; sum and number of those that were.
    to_measure: int = 0
    ratios: Tensor | None = None

    def prepare(self, epoch: int, schedule: Schedule) -> None:
        """Ready for steps of this epoch (from 0)."""
        self.wrapped.train()
        self.objective.epoch, self.objective.epochs = epoch, schedule.epochs
        rate = schedule.learning_rate_at(epoch)
        for group in self.optimizer.param_groups:
            # On a GPU a tensor, which recorded steps read at its place.
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate

    def step(
        self,
        batch: Batch,
        teacher: TeacherOutput | None,
        accelerator: Accelerator,
        precision: str,
        share: float = 1.0,
    ) -> None:
        """One optimiser step; losses are added up on the device, so that nothing waits for it.

        ``share`` is this process's part of the batch, 1 for an equal one: gradients are averaged over
        processes as if parts were equal.
        """
        with autocast(accelerator.device, precision):
            parts = self.wrapped(*batch, teacher)
        if self.to_measure:
            self.to_measure -= 1
            ratio = gradient_ratio(self.objective, parts)
            if ratio is not None:
                self.ratios += torch.where(
                    ratio.isfinite(), torch.stack([ratio, torch.ones_like(ratio)]), 0.0
                )
        self.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(parts["total"] * share)
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

    def close_epoch(self, epoch: int, learning_rate: float, images: int, measured: dict[str, float]) -> None:
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
            "learning_rate": _rounded(learning_rate),
            "accuracy": None,
            **measured,
            **losses,
        }
        for column in {**self.history, **row}:
            # A loss that only some epochs have is missing in the others.
            self.history.setdefault(column, [None] * epoch).append(row.get(column))


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


def resolve_precision(precision: str) -> str:
    """What ``auto`` means on this machine: ``bf16`` where the hardware multiplies it, ``fp32`` elsewhere;
    another precision stays.

    Settled before a run has settings, so that its record says what it was trained in.
    """
    if choose("precision", precision, PRECISIONS) != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    abilities = torch.cpu.get_capabilities()
    return "bf16" if any(abilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which networks run: ``fp32`` as they are, ``bf16`` in mixed precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def accelerator_for_this_process() -> Accelerator:
    """Device and process group. Precision is a setting of the run, so accelerate is kept out of it.

    **Raises:** ``SettingsError`` if this process was started as one of several and would train alone: each
    would write the same records.
    """
    # Buffers are brought together where they are needed: at every step only the first process's would count.
    accelerator = Accelerator(
        mixed_precision="no", kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise SettingsError(
            f"this is one of {started} processes, but accelerate trains in {accelerator.num_processes}; "
            "without GPUs set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def answers(model: nn.Module, images: Images, precision: str = "fp32") -> Tensor:
    """Which images a model answers rightly; it is left in the mode it was in. Several processes share the
    images out.

    **Returns:** bool [N, 1] in the stored order, or [N, 2] where the data set asks for it: the second column
    says whether the label is among the model's five first.

    **Raises:** ``RuntimeError`` should any image be left out or counted twice.
    """
    training = model.training
    model.eval()
    parts = []
    with torch.no_grad(), autocast(images.device, precision):
        for batch, labels in images.ordered_batches(rank=rank(), world=world()):
            logits, labels = model(batch), labels[:, None]
            columns = [logits.argmax(1, keepdim=True) == labels]
            if images.entry.top5:
                columns.append((logits.topk(5).indices == labels).any(1, keepdim=True))
            parts.append(torch.cat(columns, 1).to(torch.uint8))
    model.train(training)
    # Processes take batches in turn, the first one the most; who has none left adds none.
    rounds, none = (
        agreed(len(parts)),
        torch.zeros(0, 1 + images.entry.top5, dtype=torch.uint8, device=images.device),
    )
    rows = torch.cat([gathered(parts[i] if i < len(parts) else none) for i in range(rounds)]).bool()
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


def open_trainee(name: str, objective: Objective, schedule: Schedule, accelerator: Accelerator) -> Trainee:
    """A objective with its optimiser, ready to be trained."""
    on_gpu = accelerator.device.type == "cuda"
    rate = (
        torch.tensor(schedule.learning_rate, device=accelerator.device) if on_gpu else schedule.learning_rate
    )
    optimizer = torch.optim.SGD(
        objective.parameters(),
        lr=rate,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    for parameter in objective.parameters():
        # As the first step would leave it, but for parameters that have no gradient yet, with which the fused
        # step cannot work.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    if schedule.sync_batchnorm and accelerator.num_processes > 1:
        objective = over_all_processes(objective, accelerator.device)
    # Where every parameter has a gradient in every step, looking for those that have none would only take
    # time.
    accelerator.ddp_handler.find_unused_parameters = objective.rests
    with warnings.catch_warnings():
        # accelerate is about to give the option on buffers another name.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped, optimizer = accelerator.prepare(objective, optimizer)
    none = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    return Trainee(
        name,
        objective,
        wrapped,
        optimizer,
        steps=none.clone(),
        broke=none,
        ratios=torch.zeros(2, device=accelerator.device),
    )
