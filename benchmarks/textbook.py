"""The usual way to distil, to measure against: one student at a time, as in public implementations.

Images go through PIL transforms in worker processes; both networks run in single precision and in the default
memory layout; every student has a teacher pass of its own; loss and accuracy are read off after every step.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from pursuhint_lib.data import describe
from pursuhint_lib.distillers import Signals
from pursuhint_lib.losses import kd
from pursuhint_lib.settings import StudentSettings
from pursuhint_lib.taps import LayerTap
from pursuhint_lib.training import build_objective


class Pictures(Dataset):
    """PIL images with the usual augmentation, from uint8 arrays [N, 3, H, W]."""

    def __init__(self, images: Tensor, labels: Tensor, entry):
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.numpy()
        self.transform = Compose(
            [
                RandomCrop(entry.image_size, padding=entry.padding),
                RandomHorizontalFlip(),
                ToTensor(),
                Normalize(entry.mean, entry.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image = self.images[index]
        return self.transform(Image.fromarray(image.squeeze())), int(self.labels[index]), index


class Textbook:
    """One student of one arm and its teacher; ``step`` trains on the next batch."""

    def __init__(
        self, run: StudentSettings, teacher: nn.Module, images: Tensor, labels: Tensor, workers: int
    ):
        entry = describe(run.data)
        self.run, self.teacher = run, teacher.to(memory_format=torch.contiguous_format).eval()
        objective = build_objective(run, teacher, labels)
        self.student, self.method = (
            objective.network.to(memory_format=torch.contiguous_format).train(),
            objective.method,
        )
        schedule = run.schedule
        parameters = [*self.student.parameters(), *(self.method.parameters() if self.method else ())]
        self.optimizer = torch.optim.SGD(
            parameters, schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )
        self.loader = DataLoader(
            Pictures(images, labels, entry),
            schedule.batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=True,
        )
        self.batches = self._endless()
        self.taps = LayerTap(self.student, run.student_points), LayerTap(self.teacher, run.teacher_points)

    def _endless(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> float:
        """Train on one batch; returns the training accuracy in %."""
        images, labels, indices = next(self.batches)
        with self.taps[0]:
            logits = self.student(images)
            student_maps = self.taps[0].features
        with torch.no_grad(), self.taps[1]:
            answers = self.teacher(images)
            teacher_maps = self.taps[1].features
        loss = self.run.ce_weight * F.cross_entropy(logits, labels) + self.run.kd_weight * kd(
            logits, answers, self.run.temperature
        )
        if self.method:
            maps = (
                [student_maps[name] for name in self.run.student_points],
                [teacher_maps[name] for name in self.run.teacher_points],
            )
            loss = loss + self.run.hint_weight * self.method(
                Signals(*maps, logits, answers, labels, indices, self.run.temperature)
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if not np.isfinite(loss.item()):
            raise ArithmeticError("the loss is not finite")
        return 100 * (logits.argmax(1) == labels).float().mean().item()

    def close(self) -> None:
        """End the workers."""
        self.loader._iterator = None
