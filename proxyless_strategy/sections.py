"""Sections of settings about what a search is given: its space, its images and its hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from .validation import Section

MOST_IMAGES = 1_000_000
"""Of a batch; the data set is the closer bound."""
MOST_PIXELS = 4096
MOST_WORKERS = 256
CIFAR10 = "torchvision:CIFAR10"
Norm = Literal["torch", "cudnn", "triton"]
"""What computes batch norms with their activations in training: see `norms.FusedNorms`."""
Decoder = Literal["pillow", "nvjpeg"]


class SpaceConfig(Section):
    """A named search space, or the user's own as `module:function`, with the options it takes."""

    name: str = "small_mbconv"
    options: dict[str, Any] = Field(default_factory=dict)


class DrawnImages(Section):
    """Pictures to try a search with: see `proxyless_strategy.data.drawn`."""

    classes: int = Field(20, ge=2, le=100_000)
    train: int = Field(12, ge=2, le=100_000)
    """Training pictures of each class."""
    val: int = Field(4, ge=1, le=100_000)
    size: int = Field(64, ge=8, le=MOST_PIXELS)
    """Height and width."""


class DataConfig(Section):
    """Where images come from and how they are split.

    `name` is `digits`, `imagefolder`, `webdataset` (tar files), `hfds` (a folder of Hugging Face's `datasets`),
    `hfds/NAME` (on its hub), `torchvision:CLASS`, or `module:function`; the function takes `(root, **options)` and
    returns three data sets: weights, architecture, test.
    """

    name: str = "digits"
    root: Path | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    architecture_fraction: float = Field(0.3, gt=0, lt=1)
    """Share of the training images that architecture steps see (the paper's validation set, section 3.2)."""
    architecture_per_class: int | None = Field(None, gt=0, le=MOST_IMAGES)
    """Exact number of architecture images of each class; overrides the fraction."""
    workers: int = Field(0, ge=0, le=MOST_WORKERS)
    augment: Literal["none", "crop", "crop_flip", "imagenet"] = "none"
    num_classes: int | None = Field(None, ge=2, le=1_000_000)
    """Outputs of the classifier where they are more than the classes found, as when the latency table is of such a
    classifier (Pixel 1: 1000)."""
    background: str | None = None
    """Colour beneath transparent pixels: white, '#808080'; without it pictures that have some are refused."""
    decoder: Decoder = "pillow"
    """What decodes training images: Pillow in the data workers, or nvJPEG on the GPU that trains, batch by batch, which
    leaves to Pillow what is no plain JPEG file."""
    skip_unreadable: bool = False
    """Read all pictures before the search, and leave out those that cannot be read."""
    draw: DrawnImages | None = None
    """Draw an ImageFolder, or files of CIFAR-10's layout, at `root` if there is nothing."""

    @model_validator(mode="after")
    def _drawn_into_a_folder(self) -> DataConfig:
        if self.draw is not None and (self.name not in ("imagefolder", CIFAR10) or self.root is None):
            raise ValueError(
                f"data.draw makes an imagefolder or {CIFAR10} at data.root, but data.name = {self.name!r} and "
                f"data.root is {self.root}; set both, or remove data.draw"
            )
        if self.draw is not None and self.name == CIFAR10 and (self.draw.size != 32 or self.draw.train < 5):
            raise ValueError(
                f"data.draw.size = {self.draw.size}, train = {self.draw.train}; {CIFAR10} has images of 32 pixels in "
                "five training files"
            )
        return self


class HardwareConfig(Section):
    """What a choice costs: its latency on a device by a table (built if the file is missing), or a count of its own."""

    name: str | None = None
    """One of `platforms`; what is given beside it is laid over that. `hardware: NAME` is short for it."""
    cost: Literal["latency", "energy", "macs", "params", "activation_memory"] = "latency"
    """What `target` counts. Latency and energy are looked up in a table of their own kind; the others need none, and
    with one of latency, the subnet's latency is reported beside them."""
    backend: str = "onnxruntime"
    table: Path | None = None
    fill: Path | None = None
    """A learned model (`proxyless latency fit`) that predicts the operators which the table lacks, at another width or
    input size; without it a missing operator is an error."""
    dtype: str | None = Field(None, min_length=1)
    """Number format that is measured. None: float32, or with `device: other` whichever the table is of."""
    options: dict[str, bool | int | str] = Field(default_factory=dict)
    """What else is chosen of the backend's options; `proxyless list backends` names them."""
    threads: int = Field(1, ge=1, le=1024)
    batch: int = Field(1, ge=1, le=65_536)
    device: str = Field("this", min_length=1)
    """`this`: the backend's own choice on this machine; or one of the backend's devices (`cpu`, `cuda:1`, ...); or
    `other`: the table is of another device (a shipped one, an imported kit), so nothing is measured on this one."""

    @property
    def place(self) -> str | None:
        """Which of the backend's devices measures, where the config names one."""
        return None if self.device in ("this", "other") else self.device

    @property
    def chosen(self) -> dict[str, Any]:
        """What `hardware.backends.get_backend` makes the backend of."""
        return {"name": self.backend, "place": self.place, "dtype": self.dtype, "options": self.options}

    @property
    def uses_table(self) -> bool:
        """Whether latencies or energies are looked up at all."""
        return self.cost in ("latency", "energy") or self.table is not None

    @model_validator(mode="after")
    def _something_to_choose(self) -> HardwareConfig:
        if self.device == "other" and not self.uses_table:
            # an int8 file can be made without the device that it is for
            without = ("float32", "int8") if self.backend in ("onnxruntime", "openvino") else ("float32",)
            given = {"options": self.options, "dtype": None if self.dtype in without else self.dtype}
            for name, value in given.items():
                if value:
                    raise ValueError(
                        f"hardware.{name} = {value} has no effect, as device other is not measured here and there is "
                        "no hardware.table; remove it or name a table"
                    )
        return self

    @model_validator(mode="after")
    def _what_energy_can(self) -> HardwareConfig:
        given = {"dtype": None if self.dtype == "float32" else self.dtype, "fill": self.fill}
        for name, value in given.items():
            if self.cost == "energy" and value is not None:
                raise ValueError(
                    f"hardware.{name} = {value}, but hardware.cost energy is of float32, by tables that are measured "
                    "whole; remove it, or search by latency"
                )
        return self

    @model_validator(mode="after")
    def _something_to_fill(self) -> HardwareConfig:
        if self.fill is not None and not self.uses_table:
            raise ValueError(
                f"hardware.fill ({self.fill}) fills a latency table, but hardware.cost is {self.cost} and there is no "
                "hardware.table; remove it or name a table"
            )
        return self
