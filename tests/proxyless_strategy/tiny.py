"""A space, a data set and an evaluator that search in a second, for tests of the Lightning side."""

import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import Checkpoint
from torch import nn
from torch.utils.data import TensorDataset

from hardware.model import CostModel
from hardware.op_spec import OpSpec
from proxyless_strategy.strategy.proxyless import ProxylessStrategy

STEPS = 6  # in an epoch: 96 images in batches of 16
RULES = ("gradient", "reinforce")


class Conv(nn.Module):
    """Convolution, batch norm, ReLU, dropout."""

    def __init__(self, width, kernel, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(torch.relu(self.bn(self.conv(x)))) + x


class TinySpace(ModelSpace):
    """Three edges over 4 channels; skip in the last two."""

    def __init__(self, dropout=0.0, norm=True):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        layers = []
        for index in range(3):
            options = {"k1": Conv(4, 1, dropout), "k3": Conv(4, 3, dropout)}
            if index:
                options["skip"] = nn.Identity()
            layers.append(LayerChoice(options, label=f"edge{index}"))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(4, 3)
        if not norm:
            for module in self.modules():
                if isinstance(module, Conv):
                    module.bn = nn.Identity()

    def forward(self, x):
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


def costs():
    """k1 costs 1, k3 costs 4, skip nothing; 1 for what is fixed."""
    shape = (4, 6, 6)

    def op(kind, kernel=1):
        return OpSpec(kind, shape, shape, kernel=kernel)

    edges = {
        f"edge{index}": {"k1": op("conv", 1), "k3": op("conv", 3), **({"skip": op("identity")} if index else {})}
        for index in range(3)
    }
    price = {1: 1.0, 3: 4.0}
    return CostModel(
        lambda spec: 0.0 if spec.kind == "identity" else price[spec.kernel],
        fixed=(),
        edges=edges,
        constant=1.0,
        unit="ms",
    )


def data(count=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 6, 6, generator=generator)
    y = (x.mean((1, 2, 3)) * 12).clamp(-1, 1).round().long() + 1
    return TensorDataset(x, y)


class Module(LightningModule):
    """A user's Lightning module with the things that users have: metrics, schedulers, logging."""

    def __init__(self, optimizers="sgd"):
        super().__init__()
        self.kind = optimizers
        self.rates = []

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        output = self(x)
        self.log("val_loss", nn.functional.cross_entropy(output, y), batch_size=len(y))
        self.log("val_acc", (output.argmax(-1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        schedulers = {
            "step": lambda: {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9), "interval": "step"},
            "epoch": lambda: {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "epoch"},
            "plateau": lambda: {
                "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(
                    optimizer, factor=0.5, patience=0, threshold=1e9
                ),
                "monitor": "val_loss",
            },
        }
        if self.kind == "sgd":
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": schedulers[self.kind]()}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])


def evaluator(*, module=None, epochs=4, callbacks=(), batch_size=16, **trainer):
    return Lightning(
        module or Module(),
        Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=trainer.pop("logger", False),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            callbacks=list(callbacks),
            num_sanity_val_steps=trainer.pop("num_sanity_val_steps", 0),
            **trainer,
        ),
        train_dataloaders=DataLoader(data(), batch_size=batch_size, shuffle=True),
        val_dataloaders=DataLoader(data(64, seed=1), batch_size=batch_size, shuffle=True),
    )


def searched(*, space=None, ckpt_path=None, seed=0, module=None, epochs=4, callbacks=(), trainer=None, **options):
    """Runs a search on what the factory `space` makes under the seed; returns the strategy."""
    options.setdefault("cost", costs())
    options.setdefault("target", 8.0)
    options.setdefault("warmup_epochs", 1)
    options.setdefault("steps_per_update", 2)
    torch.manual_seed(seed)
    strategy = ProxylessStrategy(seed=seed, **options)
    made = evaluator(module=module, epochs=epochs, callbacks=callbacks, **(trainer or {}))
    strategy.search((space or TinySpace)(), made, ckpt_path=ckpt_path)
    return strategy


def final_state(strategy):
    """What two searches must agree on to be the same."""
    module = strategy.searched
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    return weights, strategy.export(), dict(module.counters), module.finalists


def assert_equal_states(first, second):
    """Two `final_state`, bit for bit."""
    assert first[1:] == second[1:]
    assert set(first[0]) == set(second[0])
    different = [name for name in first[0] if not torch.equal(first[0][name], second[0][name])]
    assert different == []


class Stopped(Exception):
    """Raised by `StopAt`."""


class StopAt(Callback):
    """Ends training after a number of batches."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step >= self.batches:
            raise Stopped
