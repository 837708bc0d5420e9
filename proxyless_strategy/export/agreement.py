"""Whether the files of an export folder are of one network: `subnet.json`, `config.json` and the weights' shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from hardware.errors import ExportError, ProxylessError
from hardware.reading import Unreadable, cut, json_of
from search_spaces.nni_import import import_nni

OF_TRAINING = ("drop_rate", "drop_path_rate")
"""Arguments of a network that no subnet says, as they are those of a training."""
_REMEDY = "they are of different exports, export it again"


def check_subnet(folder: Path, config: Mapping[str, Any], subnet: Path) -> None:
    """Refuse an export whose `config.json` builds another network than its `subnet.json` names.

    A folder without that file, and a choice in a space of the user's own, say nothing that could be compared.

    Args:
        folder: The export folder, as errors name it.
        config: Its `config.json`.
        subnet: Its `subnet.json`.

    Raises:
        ExportError: They disagree, or the subnet cannot be read.
    """
    arguments = config.get("model_args") or {}
    _check_feeding(folder, config.get("pretrained_cfg"), arguments)
    if not subnet.exists():
        return
    try:
        values = json_of(subnet)
    except Unreadable as error:
        raise ExportError(f"cannot read the {subnet.name} of {folder}: {error.reason}; export it again") from error
    if values == {}:
        return
    # a declaration imports NNI, which is slow and noisy unless it is done so
    import_nni()
    from search_spaces.subnet import KINDS, Subnet

    space = values.get("space") if isinstance(values, dict) else None
    if isinstance(space, dict) and "kind" in space and space["kind"] not in list(KINDS):
        return
    sizes = {name: arguments[name] for name in ("num_classes", "in_chans") if name in arguments}
    try:
        named = Subnet.from_dict(values)
        wanted = json.loads(json.dumps(named.model_args(**sizes)))
    except (ProxylessError, TypeError, ValueError) as error:
        raise ExportError(f"the {subnet.name} of {folder} names no network: {error}; export it again") from error
    if config["architecture"] != named.timm_name:
        raise ExportError(
            f"{folder} holds architecture = {config['architecture']!r} in its config.json, but its {subnet.name} names "
            f"one of {named.timm_name}; {_REMEDY}"
        )
    # a timm model's own rates are no more of its subnet's than those of another training
    wanted = {name: value for name, value in wanted.items() if name not in OF_TRAINING}
    # timm writes it down whether or not it was given; a subnet's network has its default
    if "global_pool" in arguments:
        wanted.setdefault("global_pool", "avg")
    given = {name: value for name, value in arguments.items() if name not in OF_TRAINING}
    for name in (*wanted, *(given.keys() - wanted.keys())):
        if name not in given or name not in wanted or given[name] != wanted[name]:
            raise ExportError(
                f"{folder} holds model_args.{name} = {_shown(given, name)} in its config.json, but its {subnet.name} "
                f"names a network with {_shown(wanted, name)}; {_REMEDY}"
            )


def check_weights(folder: Path, config: Mapping[str, Any], found: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Refuse weights of other names or shapes than those of the network that `config.json` builds.

    timm itself drops a classifier of another size in silence, and leaves a random one in its place.

    Args:
        folder: The export folder, as errors name it.
        config: Its `config.json`.
        found: The shapes of the tensors in its weights.
        name: The name of the weights' file.

    Raises:
        ExportError: They disagree.
    """
    with torch.device("meta"):
        network = timm.create_model(config["architecture"], **(config.get("model_args") or {}))
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for tensor in sorted(wanted.keys() | found.keys()):
        if wanted.get(tensor) != found.get(tensor):
            raise ExportError(
                f"{folder} holds {_tensor(found.get(tensor))} {cut(tensor)} in its {name}, but its config.json builds "
                f"a network with {_tensor(wanted.get(tensor))} of that name; {_REMEDY}"
            )


def _check_feeding(folder: Path, feeding: Any, arguments: Any) -> None:
    if not isinstance(feeding, Mapping) or not isinstance(arguments, Mapping):
        raise ExportError(f"{folder} has a config.json without pretrained_cfg or model_args; export it again")
    said = {"num_classes": feeding.get("num_classes"), "in_chans": None}
    size = feeding.get("input_size")
    if size is not None:
        whole = isinstance(size, list | tuple) and all(isinstance(side, int) and side >= 1 for side in size)
        if not whole or len(size) != 3:
            raise ExportError(
                f"{folder} has pretrained_cfg.input_size = {size!r} in its config.json; it must be [C, H, W], export "
                "it again"
            )
        said["in_chans"] = size[0]
    for name, value in said.items():
        if value is not None and name in arguments and arguments[name] != value:
            raise ExportError(
                f"{folder} has model_args.{name} = {arguments[name]!r} in its config.json, but is fed by its "
                f"pretrained_cfg with {value!r}; {_REMEDY}"
            )


def _shown(values: Mapping[str, Any], name: str) -> str:
    text = json.dumps(values[name]) if name in values else "none"
    return text if len(text) <= 80 else f"{text[:38]}...{text[-38:]}"


def _tensor(shape: tuple[int, ...] | None) -> str:
    return "no tensor" if shape is None else f"a tensor of {'x'.join(map(str, shape)) or '1 number'}"
