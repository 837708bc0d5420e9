"""Divide training images between weight steps and architecture steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hardware.errors import DataError


def stratified_split(
    labels: np.ndarray,
    *,
    fraction: float,
    per_class: int | None = None,
    seed: Sequence[int],
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split images class by class, at random.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
        >>> rest, taken = stratified_split(labels, fraction=0.5, seed=(0,))
        >>> labels[rest].tolist(), labels[taken].tolist()
        ([0, 0, 0, 1], [0, 0, 0, 1])

    Args:
        labels: The class of each image.
        fraction: Share of each class that the second part gets, rounded, but at least one image.
        per_class: Exact number of each class that the second part gets; overrides the fraction.
        seed: Seed of the draw.
        class_names: For messages.

    Returns:
        Sorted indices of the first and of the second part; they are disjoint and hold every image.

    Raises:
        DataError: A class has too few images to leave at least one in both parts.
    """
    generator = np.random.default_rng(tuple(seed))
    second = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = per_class if per_class is not None else max(1, round(fraction * len(members)))
        if per_class is None and len(members) > 1:
            count = min(count, len(members) - 1)
        if count >= len(members):
            name = class_names[label] if class_names else label
            raise DataError(
                f"class {name!r} has {len(members)} training images, too few to give {count} of them away; add images"
                + (" or lower data.architecture_per_class" if per_class is not None else "")
            )
        second.append(generator.choice(members, size=count, replace=False))
    taken = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(labels)), taken), taken
