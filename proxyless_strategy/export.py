"""From a trained subnet to what leaves the project: a timm export folder, an ONNX file, and a count of its size."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from hardware.errors import ExportError
from hardware.files import write_atomically

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SUBNET, METRICS, HUB, ONNX = "subnet.json", "metrics.json", "hubconf.py", "model.onnx"
NETWORK = "tree_cell_net.py"
FOLDER_FILES = (CONFIG, WEIGHTS, SUBNET, METRICS, HUB, NETWORK, ONNX)
"""All that an export folder may hold; a folder with anything else is not replaced."""

HUBCONF = '''"""`torch.hub.load(FOLDER, "model", source="local")`: this folder's network, with torch and timm alone."""

import json
from functools import partial
from pathlib import Path

from safetensors.torch import load_file
from timm.models import EfficientNet
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, resolve_bn_args, round_channels
from torch import nn

dependencies = ["torch", "timm", "safetensors"]


def model(pretrained=True, **overrides):
    """Build the network and load its weights; `overrides` are arguments of timm's EfficientNet, such as drop_rate."""
    folder = Path(__file__).resolve().parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    args = {**config["model_args"], **overrides}
    stem_stride = args.pop("stem_stride", 2)
    network = EfficientNet(
        block_args=decode_arch_def(args.pop("arch_def")),
        fix_stem=True,
        round_chs_fn=partial(round_channels, multiplier=None),
        act_layer=resolve_act_layer(args, "relu6"),
        norm_layer=partial(nn.BatchNorm2d, **resolve_bn_args(args)),
        **args,
    )
    network.conv_stem.stride = (stem_stride, stem_stride)
    if pretrained:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    network.pretrained_cfg = network.default_cfg = config["pretrained_cfg"]
    return network
'''

TREE_HUBCONF = '''"""`torch.hub.load(FOLDER, "model", source="local")`: this folder's network, with its own file."""

import importlib.util
import json
from pathlib import Path

from safetensors.torch import load_file

dependencies = ["torch", "timm", "safetensors"]


def model(pretrained=True, **overrides):
    """Build the network and load its weights; `overrides` are arguments of TreeCellNet, such as drop_path_rate."""
    folder = Path(__file__).resolve().parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("tree_cell_net", folder / "tree_cell_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.TreeCellNet(**{**config["model_args"], **overrides})
    if pretrained:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    network.pretrained_cfg = network.default_cfg = config["pretrained_cfg"]
    return network
'''


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that was compared with its network.

    Attributes:
        path: The file; it needs no other file beside it.
        max_abs_difference: Largest difference of a logit between ONNX Runtime and PyTorch on random images.
    """

    path: Path
    max_abs_difference: float


@dataclass(frozen=True)
class ModelSummary:
    """The size of a network.

    Attributes:
        params: All parameters, those of batch norms and biases too; running statistics are none.
        macs: Multiply-accumulates of convolutions and linear layers for one image; biases, norms, activations and
            pooling are not counted.
    """

    params: int
    macs: int


def export_folder(
    model: nn.Module,
    folder: Path,
    *,
    model_args: Mapping[str, Any],
    subnet: Mapping[str, Any],
    pretrained_cfg: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Path:
    """Writes the folder that timm (`local-dir:FOLDER`) and torch.hub (`source='local'`) load.

    The network is built back from the written files and must give equal outputs before the folder appears under its
    name; an earlier export there is replaced as a whole.

    Args:
        model: A timm network, with the weights to write.
        folder: Where to write; its parents are made.
        model_args: Arguments of `timm.create_model` that rebuild the network, as `Subnet.model_args` gives them.
        subnet: The choice, as `Subnet.to_dict` gives it.
        pretrained_cfg: What the network must be fed with, as `ImageData.pretrained_cfg` gives it.
        metrics: Results to keep beside the weights.

    Returns:
        The folder.

    Raises:
        ExportError: The folder is in the way or cannot be written, a value is no JSON, or the written files build
            another network than `model`.
    """
    folder = Path(folder)
    if getattr(model, "pretrained_cfg", None) is None:
        raise ExportError(f"{type(model).__name__} was not built by timm.create_model; export a timm network")
    check_replaceable(folder)
    texts = {SUBNET: _json(SUBNET, subnet), METRICS: _json(METRICS, metrics), **_sources(model)}
    feeding = dict(_plain("pretrained_cfg", pretrained_cfg))
    config: dict[str, Any] = {"pretrained_cfg": feeding}
    if "label_names" in feeding:
        config["label_names"] = feeding.pop("label_names")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ExportError(f"cannot write to {folder.parent}: {error.strerror}; choose another folder") from error
    try:
        saved = copy.deepcopy(model).to("cpu").to(memory_format=torch.contiguous_format)
        try:
            save_for_hf(
                saved,
                str(beside),
                model_config=config,
                model_args=_plain("model_args", model_args),
                safe_serialization=True,
            )
            for name, text in texts.items():
                (beside / name).write_text(text, encoding="utf-8")
            for path in (beside, *beside.iterdir()):
                path.chmod((0o777 if path is beside else 0o666) & ~_umask())
        except OSError as error:
            raise ExportError(f"cannot write {folder}: {error.strerror}; make room or choose another folder") from error
        _check_rebuilds(beside, saved, shown_as=folder)
        _move_into_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def load_exported(folder: Path, **overrides: Any) -> nn.Module:
    """Builds the network of an export folder with its weights, in evaluation mode.

    Args:
        folder: What `export_folder` wrote.
        **overrides: Arguments of `timm.create_model` (`num_classes`, `in_chans`, `features_only`, `exportable`, ...).

    Raises:
        ExportError: The folder is missing or incomplete, or its files do not belong together.
    """
    import search_spaces.timm_models  # noqa: F401  (registers the architecture)

    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ExportError(f"{folder} has no {name}, so it is no export folder; give the folder of an export")
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True, **overrides).eval()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"cannot build the network of {folder}: {type(error).__name__}: {reason}; export it again"
        ) from error


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
    """Writes a network as one ONNX file and compares it with PyTorch in ONNX Runtime.

    Args:
        source: A network, or an export folder.
        out: The file; it appears only if the comparison holds.
        input_shape: `C x H x W` of an image; None: as the export folder says.
        batch: Images in the (fixed) batch.
        opset: Version of the ONNX operators.
        tolerance: Largest allowed difference of an output on random images.
        seed: Seed of these images.

    Raises:
        ExportError: The network cannot be exported, differs by more than `tolerance`, or the file cannot be written.
    """
    import onnxruntime

    out = Path(out)
    if isinstance(source, nn.Module):
        model = source
        if input_shape is None:
            raise ExportError(f"the input size of a {type(model).__name__} is not known; give input_shape as C, H, W")
    else:
        model = load_exported(Path(source), exportable=True)
        input_shape = input_shape or _input_size(model)
    images = torch.randn(batch, *_image_shape(input_shape), generator=torch.Generator().manual_seed(seed))
    with _evaluating(model) as evaluated:
        with torch.inference_mode():
            expected = evaluated(images)
        content = _onnx_bytes(evaluated, images, opset=opset)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    difference = float((torch.from_numpy(found) - expected).abs().max())
    if not difference <= tolerance:
        raise ExportError(
            f"the ONNX form of {type(model).__name__} differs by {difference:.3g} from PyTorch, more than the "
            f"tolerance {tolerance:g}; raise the tolerance if that is good enough, or try another opset (now {opset})"
        )
    try:
        write_atomically(out, content)
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error.strerror}; choose another place") from error
    return OnnxExport(out, difference)


def model_summary(model: nn.Module, input_shape: Sequence[int]) -> ModelSummary:
    """Counts parameters and multiply-accumulates; nothing is computed, and the network stays as it is.

    Args:
        model: The network.
        input_shape: `C x H x W` of an image.
    """
    from torch.utils.flop_counter import FlopCounterMode

    shape = _image_shape(input_shape)
    shadow = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, *shape, device="meta"))
    return ModelSummary(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counter.get_total_flops() // 2,
    )


def _sources(model: nn.Module) -> dict[str, str]:
    """What builds the network without this project: timm's own classes, or the file of a family that timm lacks."""
    from search_spaces import tree_cell_net

    if isinstance(model, tree_cell_net.TreeCellNet):
        return {HUB: TREE_HUBCONF, NETWORK: Path(tree_cell_net.__file__).read_text(encoding="utf-8")}
    return {HUB: HUBCONF}


def _input_size(model: nn.Module) -> Sequence[int]:
    config: Any = model.pretrained_cfg
    return config["input_size"]


def _image_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ExportError(f"input_shape = {tuple(input_shape)}; give C, H and W of one image")
    return shape


def _onnx_bytes(model: nn.Module, images: torch.Tensor, *, opset: int) -> bytes:
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
            assert program is not None
            proto = program.model_proto
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                f"{type(model).__name__} cannot be exported to ONNX opset {opset}: {reason}; use a network of timm "
                "or try another opset"
            ) from error
    return _without_traces(proto).SerializeToString()


def _without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drops the exporter's notes: stack traces with this machine's paths, longer than a small network's graph."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return proto


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _json(name: str, values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(values, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ExportError(f"{name} cannot be written as JSON: {error}; give finite numbers and plain values") from error


def _plain(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(_json(name, dict(values)))


def check_replaceable(folder: Path) -> None:
    """Refuses a folder that `export_folder` would not replace.

    Raises:
        ExportError: It is a file or a link, or holds something that is no part of an export.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"{folder} is in the way of the export folder; remove it or choose another name")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FOLDER_FILES) if folder.exists() else []
    if others:
        raise ExportError(
            f"{folder} holds {others[0]!r}, which is no part of an export; remove it or choose another folder"
        )


def _check_rebuilds(written: Path, model: nn.Module, *, shown_as: Path) -> None:
    try:
        rebuilt = load_exported(written)
    except ExportError as error:
        raise ExportError(
            f"model_args do not describe the network to export to {shown_as}: {error.__cause__}; give those that "
            "built it"
        ) from error
    images = torch.randn(1, *_image_shape(_input_size(rebuilt)), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = float((rebuilt(images) - model.eval()(images)).abs().max())
    if difference != 0.0:
        raise ExportError(
            f"the network built from model_args differs by {difference:.3g} from the one to export to {shown_as}; "
            "give the model_args that built it"
        )


def _move_into_place(beside: Path, folder: Path) -> None:
    old = None
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old)
    os.replace(beside, folder)
    if old is not None:
        shutil.rmtree(old)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
