"""What is exported, and what is found out about it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..records import Record
from .formats import FORMS
from .measure import BATCHES, ONNX, PYTORCH, Latency


@dataclass(frozen=True)
class Subject:
    """What is exported.

    **Arguments:**

    - ``record``: of the run that trained it.
    - ``network``: trained, in eval mode, on the CPU. ``build``: function that builds it anew, with other
      weights.
    - ``arm``: how the teacher's layers were chosen; empty where nothing was. ``why``: why this network, in a
      sentence for the card.
    """

    record: Record
    network: nn.Module
    build: Callable[[], nn.Module]
    arm: str = ""
    why: str = ""


@dataclass(frozen=True)
class FormReport:
    """One file of an export, loaded anew: its ``bytes``, the largest ``difference`` of a logit from
    PyTorch's, and its test ``accuracy`` in %.
    """

    file: str
    bytes: int
    difference: float
    accuracy: float


@dataclass(frozen=True)
class Exported:
    """What was measured of an exported network.

    **Arguments:**

    - ``parameters``; ``flops`` of one image, in convolutions and matrix products, a multiplication and an
      addition counted as two.
    - ``images``: number of test images; ``accuracy``: test top-1 in % before export, in fp32 on the CPU;
      ``largest``: of all its logits.
    - ``forms``: name → report. ``latency``: of PyTorch and ONNX Runtime, on one thread of the CPU, which
      ``device`` names.
    """

    parameters: int
    flops: int
    images: int
    accuracy: float
    largest: float
    forms: dict[str, FormReport]
    latency: tuple[Latency, ...]
    device: str = ""

    def milliseconds(self, runtime: str) -> float:
        """Median latency of one image."""
        return next(one.median for one in self.latency if (one.runtime, one.batch) == (runtime, 1))


def read_report(content: dict) -> Exported:
    """The measurements as ``dataclasses.asdict`` and JSON have left them.

    **Raises:** ``ValueError``, ``TypeError`` or ``KeyError`` where something is missing or unknown.
    """
    forms = {name: FormReport(**content["forms"][name]) for name in FORMS}
    latency = tuple(Latency(**one) for one in content["latency"])
    if {(one.runtime, one.batch) for one in latency} != {
        (runtime, batch) for runtime in (PYTORCH, ONNX) for batch in BATCHES
    }:
        raise ValueError("not all latencies are there")
    return Exported(**{**content, "forms": forms, "latency": latency})
