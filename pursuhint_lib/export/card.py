"""The model card of an exported network: what it is, how it was trained, how good it is, and how
to load it.
"""

from ..data import Dataset
from ..distillers import distiller
from .formats import FORMS, INPUT, OPSET, OUTPUT
from .report import Exported, Subject


def model_card(subject: Subject, found: Exported, entry: Dataset) -> str:
    """The card as Markdown; its code blocks run in the folder of the files.

    **Arguments:** ``entry`` of the data set, completed.
    """
    dataset = subject.record.settings["data"]["dataset"]
    return f"""# {_network(subject)}, {entry.classes} classes of {dataset}

{_what(subject)}

| | |
|---|---|
{_rows(subject, found)}

{subject.why}

{_use(subject, entry)}

{_measured(found)}

## Licence and limits

The code is under the MIT licence. The weights were made from {_sources(subject)}; the terms of these apply to the weights, too.
The network was trained for a study of distillation. It knows no other images, and was not made to say how sure it is.
"""


def _use(subject: Subject, entry: Dataset) -> str:
    """What goes in and comes out, and how to load each form."""
    shape = f"{entry.channels}, {entry.image_size}, {entry.image_size}"
    return f"""## Input and output

Images: float32 [batch, {shape}], {"red, green and blue" if entry.channels == 3 else "grey"}, any number of them. Pixels in [0, 1], minus
{_numbers(entry.mean)}, divided by {_numbers(entry.std)}, a number per channel. Output: logits [batch, {entry.classes}], classes in the data
set's own order.

## Loading

{_in_three_lines(subject, entry)}

The graph, without this library (`torch`):

```python
import torch
network = torch.export.load("{FORMS["torch.export"].file}").module()
logits = network(torch.zeros(1, {shape}))
```

ONNX (`onnxruntime`; operators of version {OPSET}):

```python
import numpy, onnxruntime
session = onnxruntime.InferenceSession("{FORMS["ONNX"].file}")
(logits,) = session.run(["{OUTPUT}"], {{"{INPUT}": numpy.zeros((1, {shape}), numpy.float32)}})
```"""


def _measured(found: Exported) -> str:
    """The files, whether they answer alike, and what a pass costs."""
    return f"""## Files

Each was loaded anew and asked about the {found.images} test images.

| file | bytes | largest difference of a logit from PyTorch's | test accuracy, % |
|---|---|---|---|
{_files(found)}

PyTorch before export: {found.accuracy:.2f} %; largest logit {found.largest:.4g}. Weights are float32. No file holds pickled code.

## Cost

{found.parameters:,} parameters; {found.flops:,} floating-point operations per image (convolutions and matrix products, a multiplication and
an addition counted as two). On one thread of a CPU, median and quartiles:

| runtime | images | ms |
|---|---|---|
{_latencies(found)}"""


def _network(subject: Subject) -> str:
    settings = subject.record.settings
    return settings["student"] if subject.record.kind == "student" else settings["network"]


def _what(subject: Subject) -> str:
    settings = subject.record.settings
    if subject.record.kind == "teacher":
        return (
            "A teacher, trained on the labels alone."
            if settings["checkpoint"] is None
            else "A teacher, trained elsewhere."
        )
    method = distiller(settings["method"])
    if not method.uses_teacher:
        return "A student, trained on the labels alone, without a teacher."
    return (
        f"A student, distilled from {settings['teacher']['network']} with {method.title} "
        f"({method.source}): {method.compares}."
    )


def _rows(subject: Subject, found: Exported) -> str:
    record, settings = subject.record, subject.record.settings
    schedule = settings["schedule"]
    rows = {
        "test accuracy, %": f"{record.metrics['accuracy']:.2f} in its record; {found.accuracy:.2f} as "
        "exported",
        "seed": settings["seed"],
    }
    if record.kind == "student":
        points = ", ".join(settings["teacher_points"])
        rows |= {"method": settings["method"], "teacher": settings["teacher"]["network"]}
        rows |= {"teacher's layers": f"{subject.arm}: {points}"} if points else {}
    if settings.get("checkpoint") is None:
        rows["schedule"] = (
            f"{schedule['epochs']} epochs, batch {schedule['batch_size']}, SGD from a learning rate of "
            f"{schedule['learning_rate']:g}"
        )
        rows["images"] = f"{settings['data']['train_images'] or 'all'} for training"
    rows |= {"precision of training": settings["precision"], "record": f"`{record.name}`"}
    rows |= {
        "hash of the settings": f"`{record.name.rpartition('_')[2]}`",
        "checksum of the data": f"`{record.provenance['data_checksum']}`",
    }
    rows["trained with torch"] = record.provenance["versions"]["torch"]
    return "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _in_three_lines(subject: Subject, entry: Dataset) -> str:
    if _reuses_classifier(subject):
        return (
            f"`{FORMS['safetensors'].file}` holds student, projector and the teacher's classifier, through "
            "which this student answers "
            "(`pursuhint_lib.distillers.ReusedClassifier`). They are used together most easily as a graph."
        )
    return f"""With the library of this study, in three lines:

```python
from pursuhint_lib.models import build_model, load_checkpoint
network = build_model("{_network(subject)}", num_classes={entry.classes}, in_channels={entry.channels}).eval()
load_checkpoint(network, "{FORMS["safetensors"].file}")
```"""


def _reuses_classifier(subject: Subject) -> bool:
    return subject.record.kind == "student" and distiller(subject.record.settings["method"]).reuses_classifier


def _files(found: Exported) -> str:
    return "\n".join(
        f"| `{r.file}` ({name}) | {r.bytes} | {r.difference:.2g} | {r.accuracy:.2f} |"
        for name, r in found.forms.items()
    )


def _latencies(found: Exported) -> str:
    return "\n".join(
        f"| {one.runtime} | {one.batch} | {one.median:g} ({one.low:g} to {one.high:g}) |"
        for one in found.latency
    )


def _sources(subject: Subject) -> str:
    """What the weights were made from: the data, and those of a teacher from elsewhere."""
    settings = subject.record.settings
    teacher = settings.get("teacher", settings)
    dataset = f"the data set {settings['data']['dataset']}"
    return f"{dataset} and the weights {teacher['checkpoint']}" if teacher["checkpoint"] else dataset


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
