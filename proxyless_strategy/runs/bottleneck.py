"""Which of loader and training step is the slower, and which setting would lift it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from ..config import SearchConfig
from ..data.datasets import ItemImages, TensorImages
from ..data.images import ImageData
from ..data.picture_folder import suffix_of

LARGE_BATCH = 256
"""Images of one process's batch from which on a larger one is not proposed: the GPU is taken to be full by then."""
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_LOOKED_AT = 1000


@dataclass(frozen=True)
class Feeding:
    """What decides how fast images come, and how fast they are used up.

    Attributes:
        loader_images: Images a second of the loader alone in one process.
        step_images: Images a second of a training step in one process.
        workers: Processes that read images, for each training process.
        cores: Of this machine, for each training process.
        batch: Images in one process's batch.
        on_gpu: Whether a GPU trains.
        decoder: `data.decoder`.
        jpegs: Whether most of the pictures are JPEG files in a folder.
        in_memory: Whether images lie in memory, so that nothing reads them.
    """

    loader_images: float
    step_images: float
    workers: int
    cores: int
    batch: int
    on_gpu: bool
    decoder: str
    jpegs: bool
    in_memory: bool

    @property
    def loader_is_slower(self) -> bool:
        """Whether steps will wait for images."""
        return self.loader_images < self.step_images

    def sentence(self) -> str:
        """Say what is the slower, and what would lift it."""
        return self._of_the_loader() if self.loader_is_slower else self._of_the_step()

    def _of_the_loader(self) -> str:
        said = "the loader is the slower"
        if self.in_memory:
            return f"{said}, though its images lie in memory; no setting of the data lifts it"
        lifts = []
        if self.workers < self.cores:
            # As if each worker read as many: what the disk and the training take of that is not known before.
            enough = math.ceil(max(1, self.workers) * self.step_images / self.loader_images)
            most = f"{self.cores} of this machine's cores"
            lifts.append(
                f"more data.workers may help ({enough} would do if each reads as many)"
                if enough <= self.cores
                else f"more data.workers may help (up to {most}, which are still too few if each reads as many)"
            )
        if self.decoder == "pillow" and self.jpegs and self.on_gpu:
            lifts.append("data.decoder: nvjpeg has the GPU decode")
        if not lifts:
            return f"{said}; nothing in the settings lifts it, smaller pictures would"
        return f"{said}; {', and '.join(lifts)}"

    def _of_the_step(self) -> str:
        said = f"the {'GPU' if self.on_gpu else 'training step'} is the slower"
        if self.on_gpu and self.batch < LARGE_BATCH:
            return f"{said}; a larger search.batch_size may lift it, more data.workers do not"
        return f"{said}; nothing in the settings of data and batch lifts it"


def feeding(
    config: SearchConfig, data: ImageData, *, loader_images: float, step_images: float, on_gpu: bool
) -> Feeding:
    """Collect what a search's settings and data say beside the two measured rates."""
    processes = max(1, config.search.devices)
    return Feeding(
        loader_images=loader_images,
        step_images=step_images,
        workers=data.workers,
        cores=max(1, (os.cpu_count() or 1) // processes),
        batch=config.search.process_batch_size,
        on_gpu=on_gpu,
        decoder=data.decoder,
        jpegs=config.data.name == "imagefolder" and mostly_jpeg(data),
        in_memory=isinstance(data.weights, TensorImages),
    )


def mostly_jpeg(data: ImageData) -> bool:
    """Whether at least half of the training pictures are JPEG files, by the names of some that are spread over them."""
    part: Any = data.weights
    samples = getattr(part.source, "samples", None) if isinstance(part, ItemImages) else None
    if samples is None:
        return False
    names = [samples[int(number)][0] for number in part.indices[:: max(1, len(part) // _LOOKED_AT)]]
    return 2 * sum(suffix_of(name) in _JPEG for name in names) >= len(names)
