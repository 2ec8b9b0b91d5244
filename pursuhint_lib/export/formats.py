"""The files that a trained network leaves as: each form can be written, and loaded anew by whoever has the
file alone.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..files import replacing
from ..models import load_checkpoint, save_weights

# Version of the ONNX operators: the oldest that torch's exporter writes without converting, so that the most
# runtimes read it.
OPSET = 18
# Names of the input and the output in the ONNX file.
INPUT, OUTPUT = "images", "logits"
# Messages of ONNX Runtime from this level on are shown: errors.
ERRORS = 3

# A network that is ready to be asked: images float32 [B, C, H, W] → logits [B, classes].
Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """One kind of file.

    **Arguments:**

    - ``file``: its name in the folder of an export.
    - ``write``: of the network, its captured graph, and a path.
    - ``load``: of the path, and of a function that builds the network with fresh weights, which only weights
      without a graph need.
    """

    file: str
    write: Callable[[nn.Module, ExportedProgram, Path], None]
    load: Callable[[Path, Callable[[], nn.Module]], Runner]


def any_batch() -> tuple[dict[int, Dim]]:
    """The sizes that are not fixed, of the only input: the first. To make it takes half a second."""
    return ({0: Dim("batch")},)


def capture(network: nn.Module, image: Tensor) -> ExportedProgram:
    """The graph of a network in eval mode, for any number of images.

    **Arguments:** ``image`` [1, C, H, W] of the shape that it will be asked about.
    """
    # Two of them, as the number 1 would be taken for a constant.
    images = torch.cat([image, image])
    program = torch.export.export(network, (images,), dynamic_shapes=any_batch())
    # Stored, they would be pickled.
    program.example_inputs = None
    for node in program.graph.nodes:
        # Where on this machine the code stands is nobody's business.
        node.meta.pop("stack_trace", None)
    return program


def _write_weights(network: nn.Module, _: ExportedProgram, path: Path) -> None:
    save_weights(network, path)


def _load_weights(path: Path, build: Callable[[], nn.Module]) -> Runner:
    network = build()
    load_checkpoint(network, path)
    return network.eval()


def _write_program(_: nn.Module, program: ExportedProgram, path: Path) -> None:
    content = io.BytesIO()
    torch.export.save(program, content)
    with replacing(path) as draft:
        draft.write_bytes(content.getbuffer())


def _load_program(path: Path, _: Callable[[], nn.Module]) -> Runner:
    return torch.export.load(str(path)).module()


def _write_onnx(_: nn.Module, program: ExportedProgram, path: Path) -> None:
    import onnx

    names = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": any_batch()}
    found = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)
    model = found.model_proto
    for entry in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        # What the exporter says of each operation's origin: names of this machine's files, and a third of the
        # size.
        del entry.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as draft:
        draft.write_bytes(model.SerializeToString())


def load_onnx(path: Path, _: Callable[[], nn.Module] | None = None) -> Runner:
    """An ONNX file in ONNX Runtime on the CPU, with as many threads as torch has."""
    # Where it is used only: from then on it has threads, which a fork of this process would lack.
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = (
        torch.get_num_threads(),
        1,
        ERRORS,
    )
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


# As tables call it → how it is written and read. The first is what the others are made from.
FORMS = {
    "safetensors": Form("model.safetensors", _write_weights, _load_weights),
    "torch.export": Form("model.pt2", _write_program, _load_program),
    "ONNX": Form("model.onnx", _write_onnx, load_onnx),
}

# Versions of what writes and reads these files, besides torch.
VERSIONS = {package: version(package) for package in ("onnx", "onnxruntime", "onnxscript")}
