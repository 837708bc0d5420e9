"""How training images are divided."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.errors import DataError
from proxyless_strategy.data.split import stratified_split


@pytest.mark.parametrize(("fraction", "expected"), [(0.3, [3, 6]), (0.01, [1, 1]), (0.99, [9, 19]), (0.5, [5, 10])])
def test_split_takes_the_share_of_each_class(fraction: float, expected: list[int]) -> None:
    labels = np.array([0] * 10 + [1] * 20)
    kept, taken = stratified_split(labels, fraction=fraction, seed=(0,))
    assert np.bincount(labels[taken]).tolist() == expected
    assert sorted([*kept, *taken]) == list(range(30))
    assert not set(kept) & set(taken)


def test_split_is_a_function_of_the_seed() -> None:
    labels = np.arange(100) % 4
    first, again, other = (stratified_split(labels, fraction=0.5, seed=(seed, 0))[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_split_with_an_exact_number_of_each_class() -> None:
    labels = np.array([0] * 10 + [1] * 20)
    _, taken = stratified_split(labels, fraction=0.9, per_class=4, seed=(0,))
    assert np.bincount(labels[taken]).tolist() == [4, 4]


@pytest.mark.parametrize(("labels", "per_class"), [([0, 0, 1], None), ([0, 0, 1, 1, 1], 2)])
def test_split_refuses_a_class_that_would_be_emptied(labels: list[int], per_class: int | None) -> None:
    with pytest.raises(DataError, match=r"class 'few|class 'one") as raised:
        stratified_split(np.array(labels), fraction=0.3, per_class=per_class, seed=(0,), class_names=("few", "one"))
    assert "too few" in str(raised.value)
