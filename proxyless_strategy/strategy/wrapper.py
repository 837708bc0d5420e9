"""The evaluator's Lightning module, seen through the search: its losses, its hooks, and the subnet it validates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import nni.nas.strategy  # noqa: F401 - before nni.nas.oneshot, else NNI's public strategies become stubs
import torch
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from torch import Tensor, nn

from .rewards import checked_scalar, labels_of, right_argmax


class EvaluatorWrapper(BaseOneShotLightningModule):
    """Passes on what NNI's base class does not, and shows validation and tests the derived subnet.

    Lightning calls the hooks of the module that it trains, which is this one, and NNI's base class hands on only some
    of them to the evaluator's module. Without the others, a user's own `validation_step` or `configure_callbacks` would
    silently never run.

    Args:
        training_module: The evaluator's Lightning module.
    """

    def __init__(self, training_module: Any):
        super().__init__(training_module)
        self._validation = ExitStack()

    # ---- what an architecture step asks of the evaluator's module ----------------------------------------------

    def ready(self, batch: Any) -> Any:
        """Return a batch in the trainer's precision, on the network's device: after a fit no longer the trainer's."""
        return self.trainer.strategy.batch_to_device(self.trainer.precision_plugin.convert_input(batch), self.device)

    def loss_scale(self) -> Tensor | None:
        """Return the loss scale of float16, a scalar on the device; None in other precisions."""
        # Of Lightning's precision plugins only float16's has a scaler, and no public way to ask for its scale.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None or not scaler.is_enabled():
            return None
        return scaler.scale(torch.ones((), device=self.device))

    def task_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the plain task loss, a scalar: `architecture_loss`, else what `training_step` returns."""
        own = getattr(self.training_module, "architecture_loss", None)
        output = own(batch, batch_idx) if own is not None else self.training_module.training_step(batch, batch_idx)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        what = "what architecture_loss returns" if own is not None else "the loss that training_step returns"
        return checked_scalar(loss, what=what, method="architecture_loss")

    def task_accuracy(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the accuracy in 0..1, a scalar: `architecture_accuracy`, else the share of right argmax on `(x, y)`.

        Raises:
            ConfigError: It returns no scalar; or the module has none, and the batch is not `(x, y)` with `B` class
                numbers, or the network's output not `B x C` logits.
        """
        own = getattr(self.training_module, "architecture_accuracy", None)
        if own is not None:
            return checked_scalar(
                own(batch, batch_idx), what="what architecture_accuracy returns", method="architecture_accuracy"
            )
        labels = labels_of(batch)
        return right_argmax(self.training_module(batch[0]), labels)

    # ---- validation and tests of the derived subnet ------------------------------------------------------------

    def derived_network(self) -> nn.Module:
        """Return the subnet to validate."""
        raise NotImplementedError

    @contextmanager
    def derived_in_place(self) -> Iterator[None]:
        """Show the evaluator's module the derived subnet as its model; the registered supernet stays as it is."""
        # Assignment would register the copy in place of the supernet, in checkpoints too. An entry of the instance's
        # own dictionary is found first, before nn.Module looks among registered modules.
        self.training_module.__dict__["_model"] = self.derived_network()
        try:
            yield
        finally:
            self.training_module.__dict__.pop("_model", None)

    def on_validation_start(self) -> None:
        # A validation begins in one hook and ends in another, so that no `with` can hold it.
        self._validation.enter_context(self.derived_in_place())
        super().on_validation_start()

    def on_validation_epoch_start(self) -> None:
        self.training_module.on_validation_epoch_start()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the evaluator's validation step on the derived subnet."""
        return self.training_module.validation_step(*args, **kwargs)

    def on_validation_epoch_end(self) -> None:
        self._validation.close()
        self.training_module.on_validation_epoch_end()

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the evaluator's test step on the derived subnet."""
        with self.derived_in_place():
            return self.training_module.test_step(*args, **kwargs)

    def on_exception(self, exception: BaseException) -> None:
        self._validation.close()

    # ---- hooks passed on ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_module.on_load_checkpoint(checkpoint)

    def configure_callbacks(self) -> Any:
        return self.training_module.configure_callbacks()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return self.training_module.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.training_module.on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.training_module.on_after_batch_transfer(batch, dataloader_idx)
