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
from ..processes import gathered, rank, total, world
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
    # Steps taken, and the first of them (from 1) whose loss was not finite; 0 while there is none. On the
    # device, so that nothing waits.
    steps: Tensor | None = None
    broke: Tensor | None = None

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


def evaluate(model: nn.Module, images: Images, precision: str = "fp32") -> dict[str, float]:
    """Top-1 ``accuracy`` in %, and ``top5_accuracy`` where the data set asks for it; model left in the mode
    it was in.

    Several processes share the images out.

    **Raises:** ``RuntimeError`` should any image be left out or counted twice.
    """
    training = model.training
    model.eval()
    right, in_five, seen = (torch.zeros((), dtype=torch.int64, device=images.device) for _ in range(3))
    with torch.no_grad(), autocast(images.device, precision):
        for batch, labels in images.ordered_batches(rank=rank(), world=world()):
            logits = model(batch)
            right += (logits.argmax(1) == labels).sum()
            if images.entry.top5:
                in_five += (logits.topk(5).indices == labels[:, None]).sum()
            seen += len(labels)
    model.train(training)
    right, in_five, seen = total(torch.stack([right, in_five, seen])).tolist()
    if seen != len(images):
        raise RuntimeError(f"{seen} images were evaluated, but there are {len(images)}")
    accuracy = {"accuracy": 100 * right / seen}
    return {**accuracy, "top5_accuracy": 100 * in_five / seen} if images.entry.top5 else accuracy


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
    return Trainee(name, objective, wrapped, optimizer, steps=none.clone(), broke=none)
