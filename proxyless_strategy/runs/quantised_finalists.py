"""Finalists of a search for int8, compared by the loss of their quantised networks: `search.finalists_dtype: int8`.

Quantisation costs some subnets more than others: of two that are alike in float32 one may be the worse as deployed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn
from torch.nn import functional

from hardware.errors import BackendError, ConfigError
from hardware.onnx_runtime import import_onnxruntime, session_options
from hardware.operators.quantised import quantise_file
from search_spaces import SpaceDeclaration, Subnet

from ..data.images import ImageData
from ..export.onnx import export_onnx
from ..layout import INT8_FILE, ONNX_FILE
from ..seeds import isolated_seed, mix_seed
from ..strategy.finalists import BATCHES, Judge
from .quantised import CALIBRATION_IMAGES, batches_of, is_for_int8, narrow_weights

if TYPE_CHECKING:
    from hardware.tables.table import LatencyTable

    from ..config import SearchConfig

STREAM = 6
"""Number of the seed stream in which their images are drawn; it must differ from every other stream of a search."""


def check_finalists(config: SearchConfig, table: LatencyTable | None) -> None:
    """Refuse a comparison in int8 that cannot be, before a search.

    Raises:
        ConfigError: It is not of a device for which int8 files are made, or there is nothing to compare.
    """
    settings = config.search
    if settings.finalists_dtype == "float32":
        return
    named = f"search.finalists_dtype = {settings.finalists_dtype}"
    if not is_for_int8(config, table):
        chosen = (config.hardware if table is None else table.header).chosen
        raise ConfigError(
            f"{named}, but the search is for {chosen['name']} in {chosen['dtype'] or 'float32'}, for which no "
            "quantised networks are made; search for onnxruntime or openvino in int8, or set it to float32"
        )
    if config.latency_input_size != config.input_size:
        raise ConfigError(
            f"{named}, but deploy_input_size = {config.latency_input_size} is not input_size = {config.input_size}, of "
            "which the images are that networks are quantised on; leave one of them out"
        )
    if settings.processes > 1:
        raise ConfigError(f"{named} works in one process; set search.devices and search.nodes to 1, or it to float32")
    if config.rule == "sensitivity" or (settings.finalists == 1 and settings.start != "sensitivity"):
        why = "rule sensitivity has none" if config.rule == "sensitivity" else "search.finalists is 1"
        raise ConfigError(f"{named}, but there are no finalists to compare, as {why}; set it to float32")


def quantised_judge(
    config: SearchConfig, space: SpaceDeclaration, data: ImageData, table: LatencyTable | None = None
) -> Judge:
    """Return what gives the loss of a finalist as an int8 file, on the same architecture images for all of them.

    Its ranges come from architecture images too, as those of the exported file do; test images are not touched. One
    that cannot be quantised is said on stderr, and its loss is no number, so that it ranks last.

    Args:
        config: The search.
        space: Its space.
        data: Its images.
        table: Its table; None: the config says what will run the file.
    """
    count = len(data.architecture)  # type: ignore[arg-type]
    batch, narrow = min(config.search.batch_size, count), narrow_weights(config, table)

    def judge(sample: Mapping[str, Any], network: nn.Module) -> float:
        choices = {label: str(choice) for label, choice in sample.items()}
        subnet = Subnet(space, choices)
        arguments = subnet.model_args(num_classes=data.num_classes, in_chans=data.channels)
        model = timm.create_model(subnet.timm_name, exportable=True, **arguments)
        state = {name: value.cpu() for name, value in network.state_dict().items()}
        model.load_state_dict(space.timm_names(state, choices))
        size = (data.channels, config.input_size, config.input_size)
        with tempfile.TemporaryDirectory() as place, isolated_seed(mix_seed(config.seed, STREAM)):
            exact = export_onnx(model, Path(place) / ONNX_FILE, input_shape=size, batch=batch).path
            ranges = islice(batches_of(data, "architecture", batch), max(1, CALIBRATION_IMAGES // batch))
            try:
                made = quantise_file(exact, Path(place) / INT8_FILE, (images for images, _ in ranges), narrow=narrow)
            except BackendError as error:
                print(f"a finalist ranks last: {error}", file=sys.stderr, flush=True)
                return float("nan")
            return onnx_loss(made, data, batch=batch, seed=mix_seed(config.seed, STREAM))

    return judge


def onnx_loss(path: Path, data: ImageData, *, batch: int, seed: int) -> float:
    """Return the mean cross-entropy of an ONNX file over the first `BATCHES` batches of shuffled architecture images.

    Args:
        path: The file, of a fixed batch.
        data: The images.
        batch: That batch.
        seed: Seed of their order.
    """
    options = session_options(torch.get_num_threads())
    session = import_onnxruntime().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, losses = session.get_inputs()[0].name, []
    with isolated_seed(seed):
        for images, labels in islice(batches_of(data, "architecture", batch), BATCHES):
            (logits,) = session.run(None, {name: images})
            losses.append(float(functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))))
    return sum(losses) / len(losses)
