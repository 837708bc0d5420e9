"""Published accuracies and devices that a benchmark sets its figures beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperDevice:
    """A device that the paper specialised a net for.

    Attributes:
        name: Short name, as in the names of the released nets.
        hardware: The device in words.
        runtime: What ran the nets, where the paper says so.
        batch: Images per inference.
        input_size: Side of the input image.
        latency_ms: What the net specialised for it takes on it.
        top1: That net's ImageNet top-1 accuracy in percent.
        table: Name of a shipped table of this device, if there is one.
    """

    name: str
    hardware: str
    runtime: str | None
    batch: int
    input_size: int
    latency_ms: float
    top1: float
    table: str | None = None


PAPER_DEVICES: dict[str, PaperDevice] = {
    device.name: device
    for device in (
        PaperDevice("gpu", "NVIDIA V100", None, 8, 224, 5.1, 75.1),
        PaperDevice("cpu", "2 x Intel Xeon E5-2640 v4", None, 1, 224, 138.7, 75.3),
        PaperDevice("mobile", "Google Pixel 1", "TF-Lite", 1, 224, 78.0, 74.6, table="pixel1"),
    )
}

_RELEASE = "log of the ProxylessNAS release"
_MOBILE_TABLE = "arXiv 1812.00332, ImageNet mobile table"
_GPU_TABLE = "arXiv 1812.00332, ImageNet GPU table"


@dataclass(frozen=True)
class Accuracy:
    """Accuracy in percent, and where it stands: for ImageNet as published, or of an export on its own images."""

    top1: float
    top5: float | None
    source: str


PUBLISHED: Mapping[str, Accuracy] = {
    "proxylessnas_cpu": Accuracy(75.29, 92.39, _RELEASE),
    "proxylessnas_gpu": Accuracy(75.08, 92.54, _RELEASE),
    "proxylessnas_mobile": Accuracy(74.59, 92.20, _RELEASE),
    "proxylessnas_mobile_14": Accuracy(76.7, 93.3, _RELEASE),
    "mobilenetv1_100": Accuracy(70.6, 89.5, _MOBILE_TABLE),
    "mobilenetv2_100": Accuracy(72.0, 91.0, _MOBILE_TABLE),
    "mnasnet_100": Accuracy(74.0, 91.8, _MOBILE_TABLE),
    "shufflenet_v2_x1_5": Accuracy(72.6, None, _GPU_TABLE),
    "resnet34": Accuracy(73.3, 91.4, _GPU_TABLE),
}
"""By the model's name, at 224 px; whoever is not here has no figure in the tables that this project goes by."""
OWN_IMAGES = "the export's own test images, metrics.json"
"""The source of an accuracy that is of other images than the published ones."""
PUBLISHED_SIZE = 224
