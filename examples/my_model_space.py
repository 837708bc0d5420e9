"""A space of your own modules, searched in milliseconds: `.venv/bin/python examples/my_model_space.py` takes a minute.

Any NNI ModelSpace will do: its candidates are timed themselves, so that no operator need be known by name.
"""

import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from sklearn.datasets import load_digits
from torch import nn

from proxyless_strategy import ProxylessStrategy, measure_modules


class MyBlock(nn.Module):
    """Two convolutions of a strip each, which no latency table knows."""

    def __init__(self, width: int, length: int):
        super().__init__()
        self.rows = nn.Conv2d(width, width, (1, length), padding=(0, length // 2))
        self.columns = nn.Conv2d(width, width, (length, 1), padding=(length // 2, 0))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.columns(self.rows(x))))


class MySpace(ModelSpace):
    """Six places for a block of strips of length 3 or 7, a plain convolution, or nothing."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            *(
                LayerChoice(
                    {
                        "strips3": MyBlock(width, 3),
                        "strips7": MyBlock(width, 7),
                        "plain": nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
                        "skip": nn.Identity(),
                    },
                    label=f"block{index}",
                )
                for index in range(6)
            )
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def search(epochs: int = 16) -> ProxylessStrategy:
    """Search on scikit-learn's digits, half of the way from the fastest to the slowest subnet."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    pairs = list(zip(images, torch.tensor(digits.target), strict=True))
    evaluator = Classification(
        learning_rate=0.003,
        train_dataloaders=DataLoader(pairs[:1200], batch_size=64, shuffle=True),
        val_dataloaders=DataLoader(pairs[1200:], batch_size=64, shuffle=True),
        num_classes=10,
        max_epochs=epochs,
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
    )
    cost = measure_modules(MySpace(), images[:1])  # backend="onnxruntime" times them as they are deployed
    print(f"whole subnets differ from the sum of their parts by {cost.error:.1%}")
    strategy = ProxylessStrategy(
        cost=cost, target_share=0.5, warmup_epochs=epochs // 4, steps_per_update=1, weight_paths="sampled"
    )
    strategy.search(MySpace(), evaluator)
    return strategy


if __name__ == "__main__":
    found = search()
    print(found.derive(), f"within {found.target:.4g} ms")
