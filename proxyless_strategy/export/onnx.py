"""An export folder as an ONNX file, checked against PyTorch."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from hardware.errors import ExportError
from hardware.files import write_atomically
from hardware.onnx_runtime import import_onnxruntime, session_options

from .folder import load_exported
from .summary import image_shape, input_size


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that was compared with its network.

    Attributes:
        path: The file; it needs no other file beside it.
        max_abs_difference: Largest difference of a logit between ONNX Runtime and PyTorch on random images.
    """

    path: Path
    max_abs_difference: float


def export_onnx(
    source: nn.Module | Path,
    out: Path,
    *,
    input_shape: Sequence[int] | None = None,
    batch: int = 1,
    opset: int = 18,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> OnnxExport:
    """Write a network as one ONNX file and compare it with PyTorch in ONNX Runtime.

    Args:
        source: A network, or an export folder.
        out: The file; it appears only if the comparison holds.
        input_shape: `C x H x W` of an image; None: as the export folder says.
        batch: Images in the (fixed) batch.
        opset: Version of the ONNX operators.
        tolerance: Largest allowed difference of an output on random images, in shares of the largest one where that is
            above 1: what float32 rounds away grows with it.
        seed: Seed of these images.

    Raises:
        ExportError: The network cannot be exported, differs by more than `tolerance`, or the file cannot be written.
    """
    out = Path(out)
    if isinstance(source, nn.Module):
        model = source
        if input_shape is None:
            raise ExportError(f"the input size of a {type(model).__name__} is not known; give input_shape as C, H, W")
    else:
        # Some of timm's activations have an autograd function of their own; `exportable` chooses the plain ones.
        model = load_exported(Path(source), exportable=True)
        input_shape = input_shape or input_size(model)
    images = torch.randn(batch, *image_shape(input_shape), generator=torch.Generator().manual_seed(seed))
    with _evaluating(model) as evaluated:
        with torch.inference_mode():
            expected = evaluated(images)
        content = _onnx_bytes(evaluated, images, opset=opset)
    onnxruntime = import_onnxruntime()
    session = onnxruntime.InferenceSession(content, session_options(1), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    difference = float((torch.from_numpy(found) - expected).abs().max())
    tolerance *= max(1.0, float(expected.abs().max()))
    if not difference <= tolerance < math.inf:  # so that nan is refused too
        raise ExportError(
            f"the ONNX form of {type(model).__name__} differs by {difference:.3g} from PyTorch, more than the "
            f"tolerance {tolerance:g}; raise the tolerance if that is good enough, or try another opset (now {opset})"
        )
    write_atomically(out, content, error=ExportError, remedy="choose another place")
    return OnnxExport(out, difference)


def _onnx_bytes(model: nn.Module, images: torch.Tensor, *, opset: int) -> bytes:
    """Export by torch.export, whose graph comes optimised: batch norms are folded into convolutions."""
    with _quiet():
        try:
            program = torch.onnx.export(
                model,
                (images,),
                input_names=["image"],
                output_names=["logits"],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # only the older exporter returns None
            proto = program.model_proto
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                f"{type(model).__name__} cannot be exported to ONNX opset {opset}: {reason}; use a network of timm "
                "or try another opset"
            ) from error
    return _without_traces(proto).SerializeToString()


def _without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's notes: stack traces with this machine's paths, longer than a small network's graph."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return proto


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put every module into evaluation mode, and each back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which warns and logs of its own inner steps."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
