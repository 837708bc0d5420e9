"""Targets of the fuzzer that hold tensors or pictures: checkpoints, exports, data sets."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from PIL import Image

from proxyless_strategy.checkpoints import short_digest
from proxyless_strategy.config import DataConfig, RetrainSettings
from proxyless_strategy.data.datasets import TensorImages
from proxyless_strategy.data.drawn import draw_cifar10, draw_image_folder
from proxyless_strategy.data.images import PARTS, ImageData
from proxyless_strategy.data.sources import check_data, load_data
from proxyless_strategy.export.folder import load_exported, read_export
from proxyless_strategy.retraining.trainer import train
from proxyless_strategy.runs.checkpoints import SearchCheckpoints
from proxyless_strategy.sections import DrawnImages
from search_spaces.nni_import import import_nni
from tests.benchmarks.fuzz_cases import Target
from tests.benchmarks.fuzz_formats import idx, packed_idx, pickled, picture, pictures, tar

import_nni()  # the released reader does so too, and NNI's first import takes seconds

# ---- releases and exports ------------------------------------------------------------------------------------------


def released_config() -> dict[str, Any]:
    """Return a small network as the release describes its networks."""

    def conv(kernel: int, inside: int, outside: int, *, stride: int = 1) -> dict[str, Any]:
        sizes = {"kernel_size": kernel, "stride": stride, "in_channels": inside, "out_channels": outside}
        return {"name": "ConvLayer", **sizes, "act_func": "relu6"}

    def block(inside: int, outside: int, expansion: int, *, stride: int = 1, shortcut: bool = False) -> dict[str, Any]:
        layer = {"name": "MBInvertedConvLayer", "in_channels": inside, "out_channels": outside, "kernel_size": 3}
        identity = {"name": "IdentityLayer"} if shortcut else None
        layer |= {"stride": stride, "expand_ratio": expansion}
        return {"name": "MobileInvertedResidualBlock", "mobile_inverted_conv": layer, "shortcut": identity}

    skipped = {"name": "MobileInvertedResidualBlock", "shortcut": {"name": "IdentityLayer"}}
    skipped["mobile_inverted_conv"] = {"name": "ZeroLayer", "stride": 1}
    blocks = [block(16, 8, 1), skipped, block(8, 8, 3, shortcut=True), block(8, 16, 3, stride=2), skipped]
    linear = {"name": "LinearLayer", "in_features": 32, "out_features": 7, "bias": True, "dropout_rate": 0}
    return {
        "name": "ProxylessNASNets",
        "bn": {"momentum": 0.1, "eps": 0.01},
        "first_conv": conv(3, 3, 16, stride=2),
        "blocks": blocks,
        "feature_mix_layer": conv(1, 16, 32),
        "classifier": linear,
    }


def read_released_config(folder: Path) -> None:
    from search_spaces.released import read_config

    network = read_config(folder / "net.json")
    network.key_map()
    network.model_args()


@functools.cache
def _network() -> tuple[Any, dict[str, Any]]:
    import tempfile

    from search_spaces.released import read_config

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.json").write_text(json.dumps(released_config()))
        network = read_config(Path(folder) / "net.json")
    model = timm.create_model("proxylessnas", **network.model_args())
    return network, {key: value.shape for key, value in model.state_dict().items()}


def released_files(folder: Path) -> None:
    network, shapes = _network()
    torch.save({key: torch.zeros(shapes[target]) for key, target in network.key_map().items()}, folder / "net.pth")


def read_released_checkpoint(folder: Path) -> None:
    from search_spaces.released import read_checkpoint

    network, shapes = _network()
    _model().load_state_dict(read_checkpoint(folder / "net.pth", network, shapes))


@functools.cache
def _model() -> torch.nn.Module:
    return timm.create_model("proxylessnas", **_network()[0].model_args())


def read_exported(folder: Path) -> None:
    read_export(folder / "model")
    load_exported(folder / "model")


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def read_search_checkpoint(folder: Path) -> None:
    found = SearchCheckpoints(folder / "search.ckpt", minutes=1.0, identity={"rule": "gradient", "settings": {}})
    found.resume(first=False)
    found.record()
    found.files.load_checkpoint(folder / "search.ckpt")


def _build() -> torch.nn.Module:
    blocks = [["ds_r1_k3_s1_c8_noskip"], ["ir_r1_k3_s2_e3_c8"]]
    return timm.create_model("proxylessnas", arch_def=blocks, stem_size=8, num_features=16, num_classes=3, in_chans=1)


@functools.cache
def _images() -> ImageData:
    labels = torch.arange(12) % 3
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    part = TensorImages(images, labels, torch.arange(12), (0.0,), (1.0,))
    return ImageData(3, 1, 8, (0.0,), (1.0,), "bicubic", augment="none", **dict.fromkeys(PARTS, part))


def _retrained(path: Path) -> None:
    recipe = RetrainSettings(epochs=1, batch_size=4, learning_rate=0.05)
    train(_build, _images(), recipe, seed=0, checkpoint=path, device="cpu", identity=_IDENTITY)


_IDENTITY = {"network": short_digest(["fuzz"])}


def retraining_files(folder: Path) -> None:
    _retrained(folder / "retrain.ckpt")


def read_retraining_checkpoint(folder: Path) -> None:
    """Continue a retraining that has only its test left."""
    _retrained(folder / "retrain.ckpt")


# ---- data ----------------------------------------------------------------------------------------------------------

_DRAWN = DrawnImages(classes=3, train=6, val=2, size=32)


def _read_all(config: DataConfig) -> None:
    check_data(config)
    data = load_data(config, input_size=8, seed=0)
    for name in PARTS:
        part = getattr(data, name)
        for index in range(len(part)):
            image, label = part[index]
            if not (0 <= int(label) < data.num_classes and bool(torch.isfinite(image).all())):
                raise AssertionError(
                    f"label {int(label)} of {data.num_classes} classes, or an image that is not finite"
                )


def _pictures(folder: Path) -> None:
    draw_image_folder(folder / "set", _DRAWN)
    good = Image.open(folder / "set" / "train" / "class0001" / "0002.jpg")
    good.save(folder / "set" / "train" / "class0001" / "0002.png")
    good.close()
    (folder / "set" / "train" / "class0001" / "0002.jpg").unlink()


def _read_pictures(folder: Path) -> None:
    _read_all(DataConfig(name="imagefolder", root=folder / "set"))


def _cifar(folder: Path) -> None:
    draw_cifar10(folder / "set", _DRAWN)


def _read_cifar(folder: Path) -> None:
    _read_all(DataConfig(name="torchvision:CIFAR10", root=folder / "set", draw=_DRAWN))


def _idx_files(folder: Path, *, packed: bool) -> None:
    from tests.proxyless_strategy.data.samples import write_idx

    write_idx(folder / "set", packed=packed)


def _own_idx_files(folder: Path) -> None:
    from tests.proxyless_strategy.data.samples import write_idx

    write_idx(folder / "set" / "MNIST" / "raw", packed=False)


def _read_idx(folder: Path) -> None:
    _read_all(DataConfig(name="torchvision:MNIST", root=folder / "set"))


def _shards(folder: Path) -> None:
    from tests.proxyless_strategy.data.samples import write_shards

    draw_image_folder(folder / "drawn", _DRAWN)
    write_shards(folder / "drawn", folder / "set")
    shutil.rmtree(folder / "drawn")


def _read_shards(folder: Path) -> None:
    # a kept index would be taken for the changed file's where both are of one tick of the clock
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, XDG_CACHE_HOME=cache):
        _read_all(DataConfig(name="webdataset", root=folder / "set"))


def data_targets() -> tuple[Target, ...]:
    """Return the targets of data sets."""
    start = {"share": 0.1, "large": True}
    batches = "set/cifar-10-batches-py"
    place = "set/train/class0001/0002.png"
    flat = functools.partial(_idx_files, packed=False)
    packed = functools.partial(_idx_files, packed=True)
    images, labels = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    own = f"set/MNIST/raw/{images}"
    return (
        Target("picture", _pictures, place, _read_pictures, picture, lambda folder: list(pictures()), share=0.2),
        Target(
            "shard of pictures",
            _shards,
            "set/train-0000.tar",
            _read_shards,
            tar,
            share=0.2,
            # a picture that is hidden by its name, or is a folder now, is none; then a class may have too few
            names=("train-0000.tar", "training images, too few"),
            large=True,
        ),
        Target("CIFAR batch", _cifar, f"{batches}/data_batch_1", _read_cifar, pickled, **start),
        Target("CIFAR names", _cifar, f"{batches}/batches.meta", _read_cifar, pickled, **start),
        Target("IDX images", flat, f"set/{images}", _read_idx, idx, **start),
        Target("IDX labels", flat, f"set/{labels}", _read_idx, idx, **start),
        Target("packed IDX images", packed, f"set/{images}.gz", _read_idx, packed_idx, **start),
        Target("IDX images of torchvision", _own_idx_files, own, _read_idx, idx, **start),
    )
