"""Digits from a function of one's own, with one pixel of another value where `pixel.json` beside this file says so."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

ENDS = (0, 900, 1350, 1797)
"""Of the parts for weights, architecture and test."""


def digits(root: Path | None) -> tuple[TensorDataset, ...]:
    """Return the three parts, of 16 pixels."""
    images, labels = load_digits(return_X_y=True)
    pictures = np.kron(images.reshape(-1, 1, 8, 8), np.ones((2, 2))) / 8 - 1
    pixel = Path(__file__).with_name("pixel.json")
    if pixel.exists():
        spoilt = json.loads(pixel.read_text())
        pictures[ENDS[spoilt["part"]] + 7, 0, 3, 3] = spoilt["value"]
    x, y = torch.tensor(pictures, dtype=torch.float32), torch.tensor(labels)
    return tuple(TensorDataset(x[a:b], y[a:b]) for a, b in pairwise(ENDS))
