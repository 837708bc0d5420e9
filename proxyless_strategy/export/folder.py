"""The folder that timm and torch.hub load: write, check, read back."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from hardware.errors import ExportError
from hardware.files import current_umask, write_atomically, writing
from hardware.reading import (
    DAMAGE,
    Kind,
    Unreadable,
    cut,
    expect,
    is_there,
    json_of,
    read_json,
    read_text,
    shown,
    tensor_shapes,
    why,
)
from search_spaces import tree_cell_net

from .agreement import check_subnet, check_weights
from .summary import image_shape, input_size

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SUBNET, METRICS, HUB, ONNX = "subnet.json", "metrics.json", "hubconf.py", "model.onnx"
NETWORK = "tree_cell_net.py"
FOLDER_FILES = (CONFIG, WEIGHTS, SUBNET, METRICS, HUB, NETWORK, ONNX)
"""All that an export folder may hold; a folder with anything else is not replaced."""
BESIDE = ("label_names", "pictures")
"""Of `ImageData.pretrained_cfg`, what stands beside timm's own keys in `config.json`, and not among them."""
RANDOM = "random"
"""The `weights` in the metrics of an export whose weights have seen no image."""
_OLD_DERIVED = {"accuracy", "unit", "target_cost", "subnet_cost"}
"""The metrics of `proxyless derive` before they said so."""
_FETCHING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Arguments of `timm.create_model` that read weights from a file, a cache or the net; no export has them."""


def export_folder(
    model: nn.Module,
    folder: Path,
    *,
    model_args: Mapping[str, Any],
    subnet: Mapping[str, Any],
    pretrained_cfg: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Path:
    """Write the folder that timm (`local-dir:FOLDER`) and torch.hub (`source='local'`) load.

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
            another network than `model` or than `subnet` names.
    """
    folder = Path(folder)
    if getattr(model, "pretrained_cfg", None) is None:
        raise ExportError(f"{type(model).__name__} was not built by timm.create_model; export a timm network")
    check_replaceable(folder)
    texts = {SUBNET: _json(SUBNET, subnet), METRICS: _json(METRICS, metrics), **_sources(model)}
    feeding = dict(_plain("pretrained_cfg", pretrained_cfg))
    config: dict[str, Any] = {"pretrained_cfg": feeding}
    for name in BESIDE:
        if name in feeding:
            config[name] = feeding.pop(name)
    with writing(folder.parent, error=ExportError, remedy="choose another folder", what="cannot write to"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # safetensors refuses tensors of another memory format than the contiguous one.
        saved = copy.deepcopy(model).to("cpu").to(memory_format=torch.contiguous_format)
        with writing(folder, error=ExportError, remedy="make room or choose another folder"):
            save_for_hf(
                saved,
                str(beside),
                model_config=config,
                model_args=_plain("model_args", model_args),
                safe_serialization=True,
            )
            for name, text in texts.items():
                write_atomically(beside / name, text, error=ExportError)
            # `mkdtemp` and safetensors let their owner alone read.
            for path in (beside, *beside.iterdir()):
                path.chmod((0o777 if path is beside else 0o666) & ~current_umask())
        _check_rebuilds(beside, saved, shown_as=folder)
        check_subnet(folder, json_of(beside / CONFIG), beside / SUBNET)
        with writing(folder, error=ExportError, remedy="make room or choose another folder"):
            _move_into_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def load_exported(folder: Path, **overrides: Any) -> nn.Module:
    """Build the network of an export folder with its weights, in evaluation mode.

    Args:
        folder: What `export_folder` wrote.
        **overrides: Arguments of `timm.create_model` (`num_classes`, `in_chans`, `features_only`, `exportable`, ...).

    Raises:
        ExportError: The folder is missing or incomplete, or its files do not belong together.
    """
    return _loaded(Path(folder), named=True, **overrides)


def _loaded(folder: Path, *, named: bool, **overrides: Any) -> nn.Module:
    """Build the network of an export folder; where `named`, it must be the one of its `subnet.json`."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ExportError(f"{folder} has no {name}, so it is no export folder; give the folder of an export")
    try:
        config = expect(json_of(folder / CONFIG), dict, CONFIG)
        _check_harmless(folder, config)
        shapes = tensor_shapes(folder / WEIGHTS)
        if named:
            check_subnet(folder, config, folder / SUBNET)
        check_weights(folder, config, shapes, WEIGHTS)
        return timm.create_model(f"local-dir:{folder}", pretrained=True, **overrides).eval()
    except ExportError:
        raise
    except Exception as error:
        reason = error.reason if isinstance(error, Unreadable) else f"{type(error).__name__}: {error}"
        raise ExportError(
            f"cannot build the network of {folder} from its {CONFIG} and {WEIGHTS}: "
            f"{cut(' '.join(reason.split()), 300)}; export it again"
        ) from error


def _sources(model: nn.Module) -> dict[str, str]:
    """Read what builds the network without this project: timm's own classes, or the file of a family timm lacks."""
    here = Path(__file__)
    if isinstance(model, tree_cell_net.TreeCellNet):
        files = {HUB: here.with_name("hubconf_tree.py"), NETWORK: Path(tree_cell_net.__file__)}
    else:
        files = {HUB: here.with_name("hubconf.py")}
    own = Kind("the program to export", "install this package again", ExportError)
    return {name: read_text(path, own) for name, path in files.items()}


def _json(name: str, values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(values, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ExportError(f"{name} cannot be written as JSON: {error}; give finite numbers and plain values") from error


def _plain(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(_json(name, dict(values)))
    return plain


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that `export_folder` would not replace.

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
    """Refuse files that build another network; equal outputs are asked for, as names and shapes do not show strides."""
    try:
        rebuilt = _loaded(written, named=False)
    except ExportError as error:
        raise ExportError(
            f"model_args do not describe the network to export to {shown_as}: {error.__cause__ or error}; give those "
            "that built it"
        ) from error
    images = torch.randn(1, *image_shape(input_size(rebuilt)), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = float((rebuilt(images) - model.eval()(images)).abs().max())
    if difference != 0.0:
        raise ExportError(
            f"the network built from model_args differs by {difference:.3g} from the one to export to {shown_as}; "
            "give the model_args that built it"
        )


def _move_into_place(beside: Path, folder: Path) -> None:
    # A rename replaces an empty folder only, so an earlier export steps aside first.
    old = None
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old)
    os.replace(beside, folder)
    if old is not None:
        shutil.rmtree(old)


def read_export(folder: Path) -> dict[str, Any]:
    """Read `config.json` of an export folder.

    Raises:
        ExportError: The folder is none, its network is not one of timm's, built here and from nothing else, or it is
            another one than its `subnet.json` names.
    """
    config = _read_config(folder)
    _check_harmless(folder, config)
    check_subnet(folder, config, folder / SUBNET)
    return config


def read_choice(folder: Path) -> dict[str, Any]:
    """Read `subnet.json` of an export folder; empty where it has none.

    Raises:
        ExportError: It cannot be read.
    """
    kind = Kind("the subnet", "put it back, or remove it", ExportError)
    found: dict[str, Any] = read_json(folder / SUBNET, kind) if is_there(folder / SUBNET) else {}
    return found


def has_random_weights(folder: Path) -> bool:
    """Return whether an export's weights have seen no image: `proxyless derive` and `import-released` may write such.

    Raises:
        ExportError: Its `metrics.json` cannot be read.
    """
    kind = Kind("the metrics", "put them back, or remove them", ExportError)
    metrics = read_json(folder / METRICS, kind) if is_there(folder / METRICS) else {}
    return metrics.get("weights") == RANDOM or (metrics.keys() == _OLD_DERIVED and metrics["accuracy"] is None)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json_of(folder / CONFIG)
        expect(config, dict, "content")
        config["architecture"]
        size = expect(config["pretrained_cfg"], dict, "pretrained_cfg")["input_size"]
        sides = expect(size, list, "pretrained_cfg.input_size")
        if len(sides) != 3 or not all(type(side) is int and side > 0 for side in sides):
            raise Unreadable(f"its pretrained_cfg.input_size is {shown(size)}, not three whole numbers (C, H, W)")
    except DAMAGE as error:
        raise ExportError(
            f"{folder} is no export folder: its config.json {_why(error)}; give the folder that a search, `proxyless "
            "derive` or `proxyless import-released` wrote"
        ) from error
    return dict(config)


def _check_harmless(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what would make `timm.create_model` fetch or open anything beside the folder's own weights."""
    architecture, arguments = config["architecture"], config.get("model_args") or {}
    # `hf-hub:NAME` is fetched, `local-dir:FOLDER` read from elsewhere: the folder's owner has asked for neither
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ExportError(
            f"cannot build the network of {folder}: its {CONFIG} has architecture = {shown(architecture)}, which is no "
            "registered architecture of timm; give the folder of an export"
        )
    if not isinstance(arguments, Mapping):
        raise ExportError(
            f"cannot build the network of {folder}: its {CONFIG} has model_args = {shown(arguments)}, which is no "
            "mapping; export it again"
        )
    for name in _FETCHING:
        if name in arguments:
            raise ExportError(
                f"cannot build the network of {folder}: its {CONFIG} has model_args.{name} = {shown(arguments[name])}, "
                "which would read weights from elsewhere; remove that key"
            )


def _why(error: Exception) -> str:
    if isinstance(error, Unreadable) and error.by_system:
        return f"cannot be read ({error.reason})"
    return f"lacks {cut(str(error))}" if isinstance(error, LookupError) else f"is damaged ({why(error)})"
