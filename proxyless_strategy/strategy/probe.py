"""What is tried before the first step of a search, as it would fail late, or never."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from hardware.errors import ConfigError, DataError

from ..seeds import isolated_seed, mix_seed
from .loaders import SeededLoader, lone_image_batch, of_one_image

if TYPE_CHECKING:
    from .module import SearchModule

STREAM = 4
"""Number of the seed stream of the batches that are tried; it must differ from every other stream of a search."""


def _loaders(module: SearchModule) -> Iterator[tuple[str, SeededLoader]]:
    if module.train_batches is not None:
        yield "training", module.train_batches
    if module.architecture_batches is not None:
        yield "validation", module.architecture_batches.loader()


def refuse_empty(module: SearchModule) -> None:
    """Refuse loaders without a batch.

    Lightning skips a training without batches, and says so at the level INFO alone: an untrained subnet would be
    exported.

    Raises:
        DataError: A loader has none.
        ConfigError: The trainer takes none.
    """
    for name, loader in _loaders(module):
        if loader.length() == 0:
            raise DataError(
                f"the {name} loader of the evaluator has no batch; give it more images, or a smaller batch_size where "
                "it drops the last batch"
            )
    if module.trainer.limit_train_batches == 0:
        raise ConfigError("limit_train_batches = 0 leaves nothing to train on; raise it")


def try_batches(module: SearchModule) -> None:
    """Try the reward on a validation batch, and the last batch of each loader where it has one image.

    The caller sees to it that nothing is logged and no buffer moves.

    Raises:
        ConfigError: The default accuracy does not fit the task.
        DataError: Batch norms refuse the batch of one image.
    """
    path = [0] * len(module.architecture.edges)
    validation = module.architecture_batches
    rewards = module.options.rule == "reinforce"
    precision = module.trainer.precision_plugin.forward_context()  # Lightning's hooks are outside of its own
    seed = mix_seed(module.problem.seed, STREAM, module.global_rank)
    with isolated_seed(seed), precision, module.supernet.running(path):
        if rewards and validation is not None:
            batches = validation.twin(stream=STREAM).twin(stream=STREAM)
            with torch.no_grad():
                module.task_accuracy(module.ready(next(iter(batches))), 0)
        for name, loader in _loaders(module):
            batch = lone_image_batch(loader.loader)
            if batch is not None:
                run = module.task_accuracy if rewards and name == "validation" else module.task_loss
                with of_one_image(f"the last batch of the {name} loader has one image"):
                    run(module.ready(batch), 0)
