"""Methods on embeddings of pooled maps: of the batch's images, or of all training images in a memory."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import losses
from ..processes import gathered, total
from .signals import Shapes, Signals, Task

# Numbers in an embedding, as in the benchmark.
WIDTH = 128
# Temperature of the contrastive losses.
TEMPERATURE = 0.07


def pooled(maps: Tensor) -> Tensor:
    """[B, C, H, W] → [B, C], mean over space."""
    return maps.mean((2, 3))


def _embedders(shapes: Shapes) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(shape[0], WIDTH) for shape in shapes)


class Embedded(nn.Module):
    """A loss of two embeddings, summed over the hint layers: each side's map is averaged over space and
    mapped to ``WIDTH`` numbers.

    Both linear maps are trained. The originals embed the last, pooled features only.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], task: Task):
        super().__init__()
        self.loss = loss
        self.students, self.teachers = _embedders(task.student_shapes), _embedders(task.teacher_shapes)

    def forward(self, signals: Signals) -> Tensor:
        triples = zip(self.students, self.teachers, signals.points, strict=True)
        return sum(self.loss(student(pooled(s)), teacher(pooled(t))) for student, teacher, (s, t) in triples)


class ContrastiveMemory(nn.Module):
    """CRD: pick an image's embedding out of thousands, remembered from other images of other classes; summed
    over the hint layers.

    Per hint layer (the original has the pooled features only) and side a memory holds one embedding of every
    training image. A student's embedding is compared with the teacher's memory, and the reverse; then the
    batch's own entries move half of the way to their new embeddings. Every image is set against ``NEGATIVES``
    images of other classes, drawn without replacement (all there are, if fewer).

    The public code draws them for each image apart and copies 64 × 16 385 rows of each memory in every step.
    Here one drawn set serves the whole batch, and each image counts the first ``NEGATIVES`` of it that are
    not of its class: for a single image the same draw.
    """

    NEGATIVES = 16384
    MOMENTUM = 0.5

    def __init__(self, task: Task):
        super().__init__()
        self.students, self.teachers = _embedders(task.student_shapes), _embedders(task.teacher_shapes)
        images, largest = len(task.labels), int(task.labels.bincount().max())
        # Of so many drawn images enough are of another class than any image's.
        self.negatives = min(self.NEGATIVES, images - largest)
        self.drawn = min(images, self.negatives + largest)
        if self.negatives < 1:
            raise ValueError(f"CRD needs training images of another class: all {images} are of one class")
        # Entries of about unit length, as in the authors' code.
        bound = (WIDTH / 3) ** -0.5
        for side in ("student_memory", "teacher_memory"):
            self.register_buffer(side, torch.empty(len(self.students), images, WIDTH).uniform_(-bound, bound))
        # Mean score times images of each point and side, from the first batch on; 0 before.
        self.register_buffer("constants", torch.zeros(len(self.students), 2))
        self.register_buffer("labels", task.labels.clone())
        self.seed = int(torch.randint(2**31, ()))
        self._generator, self._epoch = torch.Generator(), -1

    def get_extra_state(self) -> dict:
        """Where the draws of the epoch are."""
        return {"generator": self._generator.get_state(), "epoch": self._epoch}

    def set_extra_state(self, state: dict) -> None:
        """Go on with the draws of an unfinished epoch."""
        self._generator.set_state(state["generator"].cpu())
        self._epoch = state["epoch"]

    def _draw(self, signals: Signals) -> tuple[Tensor, Tensor]:
        """Indices [M] of the drawn images, and for every image of the batch which of them count [B, M]."""
        if signals.epoch != self._epoch:
            # By the epoch, so that a resumed training draws as the uninterrupted one.
            self._epoch = signals.epoch
            self._generator.manual_seed(self.seed + signals.epoch)
        chosen = torch.randperm(len(self.labels), generator=self._generator)[: self.drawn].to(
            self.labels.device
        )
        other = self.labels[chosen] != signals.labels[:, None]
        return chosen, other & (other.cumsum(1) <= self.negatives)

    def forward(self, signals: Signals) -> Tensor:
        chosen, counted = self._draw(signals)
        total = 0.0
        parts = zip(
            self.students,
            self.teachers,
            self.student_memory,
            self.teacher_memory,
            self.constants,
            signals.points,
            strict=True,
        )
        for embed_student, embed_teacher, of_student, of_teacher, constants, (s, t) in parts:
            student, teacher = (
                losses.common.unit(embed_student(pooled(s))),
                losses.common.unit(embed_teacher(pooled(t))),
            )
            for query, memory, constant in (
                (student, of_teacher, constants[0]),
                (teacher, of_student, constants[1]),
            ):
                own = ((query * memory[signals.indices]).sum(1) / TEMPERATURE).exp()
                others = (query @ memory[chosen].T / TEMPERATURE).exp()
                scale = self._frozen(constant, own, others, counted)
                total = total + losses.contrastive_memory(own / scale, others / scale, counted, len(memory))
            self._remember(of_student, student, signals.indices)
            self._remember(of_teacher, teacher, signals.indices)
        return total

    @torch.no_grad()
    def _frozen(self, constant: Tensor, own: Tensor, others: Tensor, counted: Tensor) -> Tensor:
        """Images in memory · mean score of the first batch, kept in ``constant`` from then on."""
        summed, count = total(torch.stack([own.sum() + (others * counted).sum(), len(own) + counted.sum()]))
        mean = summed / count
        constant.copy_(torch.where(constant == 0, len(self.labels) * mean, constant))
        # A copy, since the backward pass needs it and the other side's constant lies in the same buffer.
        return constant.clone()

    @torch.no_grad()
    def _remember(self, memory: Tensor, embedding: Tensor, indices: Tensor) -> None:
        # Of the images of all processes, so that their memories stay the same.
        indices, embedding = gathered(indices), gathered(embedding)
        memory[indices] = losses.common.unit(
            self.MOMENTUM * memory[indices] + (1 - self.MOMENTUM) * embedding
        )
