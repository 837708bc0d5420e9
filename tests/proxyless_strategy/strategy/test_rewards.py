"""Rewards and losses of tasks: which fit their default, and which are refused by name before the first step."""

import pytest
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader, Regression
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from hardware.errors import ConfigError
from proxyless_strategy.strategy.objectives import HardReward, PaperReward
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rewards import right_argmax
from tests.proxyless_strategy import tiny

IMAGES = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Outputs(ModelSpace):
    """One edge, and an output of any shape."""

    def __init__(self, outputs, *, maps=False):
        super().__init__()
        self.edge = LayerChoice({"k1": nn.Conv2d(1, 4, 1), "k3": nn.Conv2d(1, 4, 3, padding=1)}, label="edge")
        self.head, self.maps = nn.Conv2d(4, outputs, 1), maps

    def forward(self, x):
        y = self.head(self.edge(x))
        return y if self.maps else y.mean((2, 3))


class Task(tiny.Module):
    """A user's module with a loss of any task."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.steps = loss, 0

    def training_step(self, batch, batch_idx):
        self.steps += torch.is_grad_enabled()
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass


def mean_entropy(logits, y):
    return functional.cross_entropy(logits, y)


def binary(logits, y):
    return functional.binary_cross_entropy_with_logits(logits[:, 0], y.float())


LABELS = torch.arange(32) % 3
# name: outputs, labels, loss, what is found
TASKS = {
    "binary, class numbers": (1, LABELS % 2, binary, r"float32 of shape \(16, 1\)"),
    "binary, floats": (1, (LABELS % 2).float(), binary, r"labels are float32 of shape \(16,\)"),
    "binary, a column": (
        1,
        (LABELS % 2).float()[:, None],
        functional.binary_cross_entropy_with_logits,
        r"labels are float32 of shape \(16, 1\)",
    ),
    "regression": (1, LABELS.float()[:, None], functional.mse_loss, r"labels are float32 of shape \(16, 1\)"),
    "several labels": (
        3,
        functional.one_hot(LABELS, 3).float(),
        functional.binary_cross_entropy_with_logits,
        r"labels are float32 of shape \(16, 3\)",
    ),
    "several labels, integers": (
        3,
        functional.one_hot(LABELS, 3),
        lambda logits, y: functional.binary_cross_entropy_with_logits(logits, y.float()),
        r"labels are int64 of shape \(16, 3\)",
    ),
    "soft labels": (3, torch.softmax(torch.randn(32, 3), 1), mean_entropy, r"labels are float32 of shape \(16, 3\)"),
    "class numbers in a column": (
        3,
        LABELS[:, None],
        lambda logits, y: functional.cross_entropy(logits, y[:, 0]),
        r"labels are int64 of shape \(16, 1\)",
    ),
    "segmentation": (
        3,
        LABELS[:, None, None].expand(32, 6, 6),
        mean_entropy,
        r"labels are int64 of shape \(16, 6, 6\)",
    ),
}


def search(module, labels, outputs, rule):
    made = tiny.evaluator(module=module, epochs=4)
    loader = DataLoader(TensorDataset(IMAGES, labels), batch_size=16)
    made.train_dataloaders, made.val_dataloaders = loader, loader
    strategy = ProxylessStrategy(rule=rule, samples=3, steps_per_update=1, warmup_epochs=1)
    strategy.search(Outputs(outputs, maps=labels.dim() == 3), made)
    return strategy


@pytest.mark.parametrize("name", TASKS)
def test_a_task_without_a_default_reward_is_refused_by_name_before_the_first_step(name):
    outputs, labels, loss, found = TASKS[name]
    module = Task(loss)
    with pytest.raises(ConfigError, match=f"{found}.*architecture_accuracy") as caught:
        search(module, labels, outputs, "reinforce")
    assert "\n" not in str(caught.value)
    assert module.steps == 0


@pytest.mark.parametrize("name", TASKS)
def test_the_gradient_rules_default_loss_fits_every_task(name):
    outputs, labels, loss, _ = TASKS[name]
    strategy = search(Task(loss), labels, outputs, "gradient")
    assert strategy.searched.counters["architecture"] == 4
    assert strategy.searched.counters["skipped"] == 0
    assert all(torch.isfinite(torch.tensor(found.loss)) for found in strategy.searched.finalists)


@pytest.mark.parametrize("name", TASKS)
def test_an_accuracy_of_the_modules_own_is_taken_for_every_task(name):
    outputs, labels, loss, _ = TASKS[name]

    class Own(Task):
        def architecture_accuracy(self, batch, batch_idx):
            return torch.exp(-self.loss(self(batch[0]), batch[1]))

    strategy = search(Own(loss), labels, outputs, "reinforce")
    assert strategy.searched.counters["architecture"] == 4


@pytest.mark.parametrize("number", [torch.int64, torch.int32, torch.uint8])
def test_class_numbers_of_any_integer_type_have_a_default_reward(number):
    strategy = search(
        Task(lambda logits, y: functional.cross_entropy(logits, y.long())), LABELS.to(number), 3, "reinforce"
    )
    assert strategy.searched.counters["architecture"] == 4


def nnis(kind, rule, outputs, labels, **options):
    loader = DataLoader(TensorDataset(IMAGES, labels), batch_size=16)
    made = kind(
        **options,
        train_dataloaders=loader,
        val_dataloaders=loader,
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    strategy = ProxylessStrategy(rule=rule, samples=3, steps_per_update=1)
    strategy.search(Outputs(outputs), made)
    return strategy.searched


@pytest.mark.parametrize("rule", tiny.RULES)
def test_nnis_classification_is_searched_by_both_rules(rule):
    searched = nnis(Classification, rule, 3, LABELS, num_classes=3)
    assert searched.counters["architecture"] == 6
    assert searched.trainer.callback_metrics["train_acc"] <= 1


def test_nnis_regression_is_searched_by_gradients_and_its_reward_refused():
    labels = LABELS.float()[:, None]
    assert nnis(Regression, "gradient", 1, labels).counters["architecture"] == 6
    with pytest.raises(ConfigError, match=r"architecture_accuracy.*rule='gradient'"):
        nnis(Regression, "reinforce", 1, labels)


def test_the_default_reward_is_the_share_of_right_classes():
    logits, y = torch.eye(4)[:, :3], torch.tensor([0, 1, 0, 2])
    assert right_argmax(logits, y) == 0.5  # the last row's greatest logit is its first
    for wrong in (logits[:3], logits[:, :1], logits[None], logits.long(), [logits]):
        with pytest.raises(ConfigError, match="architecture_accuracy"):
            right_argmax(wrong, y)


@pytest.mark.parametrize(
    ("rule", "method", "value"),
    [
        ("reinforce", "architecture_accuracy", 0.5),
        ("reinforce", "architecture_accuracy", torch.ones(3)),
        ("gradient", "architecture_loss", None),
        ("gradient", "architecture_loss", torch.ones(3)),
    ],
)
def test_what_is_no_scalar_is_refused_by_the_name_of_its_method(rule, method, value):
    module = Task(mean_entropy)
    setattr(module, method, lambda batch, batch_idx: value)
    with pytest.raises(ConfigError, match=f"what {method} returns must be a scalar tensor"):
        search(module, LABELS, 3, rule)


@pytest.mark.parametrize("reward", [PaperReward(2.0), HardReward(2.0)])
def test_a_negative_reward_is_not_multiplied_by_a_latency_factor(reward):
    """It would be the higher, the slower the subnet."""
    latency = torch.tensor([1.0, 4.0])
    assert reward.reward(torch.tensor([0.5, 0.5]), latency, 2.0).diff() < 0
    with pytest.raises(ConfigError, match=r"-0.5 cannot be multiplied.*architecture_accuracy"):
        reward.reward(torch.tensor([-0.5, 0.5]), latency, 2.0)
