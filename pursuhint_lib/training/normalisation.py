"""BatchNorm when several processes share a batch: each takes the statistics of its own part, or all take
those of the whole batch.
"""

from collections.abc import Iterable

import torch
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn

from ..processes import total, world


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
