"""Taking a trained network out of the study: weights, graph and ONNX file, each loaded anew and compared,
with what it costs and a model card.
"""

from pathlib import Path

import torch

from ..data import Images, StreamedImages
from ..files import replacing
from ..models import parameter_count
from ..processes import threads
from ..records import processor
from ..settings import SettingsError
from .card import model_card
from .formats import FORMS, OPSET, VERSIONS, capture, load_onnx
from .measure import ONNX, PYTORCH, REPEATS, WARM_UP, Latency, accuracy, answers, flops, latencies
from .report import Exported, FormReport, Subject, read_report

# How far a form's logits may lie from PyTorch's, as a share of the largest logit or of 1: float32 keeps seven
# digits, of which a sum of some thousand products in another order costs two.
TOLERANCE = 1e-4
# File of the model card.
CARD = "README.md"
# How it is measured, for the provenance of measurements.
CONDITIONS = {
    "latency_threads": 1,
    "warm_up": WARM_UP,
    "repeats": REPEATS,
    "opset": OPSET,
    "tolerance": TOLERANCE,
}


def export(subject: Subject, test: Images | StreamedImages, folder: Path) -> Exported:
    """Write all forms of a network and its model card, load each form anew, and measure.

    **Arguments:** ``test`` images, which come to the CPU; ``folder`` is made where it is missing.

    **Returns:** the measurements, which stand in the card, too.

    **Raises:** ``SettingsError`` naming the form whose logits differ from PyTorch's by more than
    ``TOLERANCE``; its file is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = torch.zeros(1, test.entry.channels, test.entry.image_size, test.entry.image_size)
    network, before = subject.network, answers(subject.network, test)
    program = capture(network, image)
    reports, largest = {}, float(before.abs().max())
    for name, form in FORMS.items():
        path = folder / form.file
        form.write(network, program, path)
        after = answers(form.load(path, subject.build), test)
        difference = float((after - before).abs().max())
        # Said so that what is no number fails, too.
        if not difference <= TOLERANCE * max(1.0, largest):
            path.unlink()
            raise SettingsError(
                f"{subject.record.name} as {name} gives other logits than PyTorch: the largest difference is "
                f"{difference:.2g}, and "
                f"{TOLERANCE:g} of the largest logit ({largest:.3g}) is allowed; its file is removed"
            )
        reports[name] = FormReport(form.file, path.stat().st_size, difference, accuracy(after, test.labels))
    with threads(1):
        runners = {PYTORCH: network, ONNX: load_onnx(folder / FORMS["ONNX"].file)}
    found = Exported(
        parameters=parameter_count(network),
        flops=flops(network, image),
        images=len(test),
        accuracy=accuracy(before, test.labels),
        largest=largest,
        forms=reports,
        latency=latencies(runners, image),
        device=processor(),
    )
    with replacing(folder / CARD) as draft:
        draft.write_text(model_card(subject, found, test.entry), encoding="utf-8")
    return found
