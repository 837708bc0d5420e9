"""The film of a search: the probability of every candidate after each epoch. Known without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hardware.reading import Unreadable, cut, expect

Frame = list[list[float]]
"""Probabilities after one epoch, by edge and candidate."""
DIGITS = 4
MOST_NUMBERS = 500_000
"""Probabilities that a film holds at most: about 4 MB of JSON, read in half a second."""


@dataclass
class FilmRecorder:
    """Keeps a frame of each epoch; of a film that grows too long every second one, then every fourth, and so on.

    >>> recorder = FilmRecorder(most=4)
    >>> for epoch in range(1, 7):
    ...     recorder.keep(epoch, [[0.25, 0.75]])
    >>> [epoch for epoch, _ in recorder.frames]
    [4]

    Attributes:
        most: Probabilities that it holds at most.
        every: Epochs between two frames.
        frames: Number of the epoch, from 1, and its frame.
    """

    most: int = MOST_NUMBERS
    every: int = 1
    frames: list[tuple[int, Frame]] = field(default_factory=list)

    def keep(self, epoch: int, probabilities: Sequence[Sequence[float]]) -> None:
        """Add an epoch's frame.

        Args:
            epoch: Its number, from 1.
            probabilities: By edge and candidate.
        """
        if epoch % self.every == 0:
            self.frames.append((epoch, [[round(float(p), DIGITS) for p in row] for row in probabilities]))
        size = sum(map(len, probabilities))
        # What is left depends on the epochs' numbers alone, so that a search that was stopped leaves the same film.
        while len(self.frames) > 1 and len(self.frames) * size > self.most:
            self.every *= 2
            self.frames = [frame for frame in self.frames if frame[0] % self.every == 0]

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {"every": self.every, "frames": [[epoch, frame] for epoch, frame in self.frames]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after `state_dict`."""
        self.every = state["every"]
        self.frames = [(epoch, frame) for epoch, frame in state["frames"]]

    def record(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return what `search.json` keeps.

        Args:
            labels: The edges, in the order of a frame's rows.
        """
        rows = {label: [frame[row] for _, frame in self.frames] for row, label in enumerate(labels)}
        return {"epochs": [epoch for epoch, _ in self.frames], "probabilities": rows}


@dataclass(frozen=True)
class Film:
    """A film that was read back.

    Attributes:
        epochs: Numbers of the epochs that it shows, from 1.
        probabilities: By edge, epoch and candidate; candidates in the order of the search's record.
    """

    epochs: tuple[int, ...]
    probabilities: Mapping[str, Sequence[Sequence[float]]]

    def frame(self, number: int) -> dict[str, Sequence[float]]:
        """Return the probabilities of the frame of this number, from 0, by edge."""
        return {label: rows[number] for label, rows in self.probabilities.items()}


def read_film(values: Any, candidates: Mapping[str, Sequence[str]]) -> Film | None:
    """Check and return what `FilmRecorder.record` wrote; None where there is no frame.

    Args:
        values: Plain values of any origin.
        candidates: Names of the candidates by edge, as the search's probabilities have them.

    Raises:
        Unreadable: It is no film of these edges.
    """
    values = expect(values, dict, "film")
    epochs = [expect(epoch, int, "film.epochs") for epoch in expect(values["epochs"], list, "film.epochs")]
    if any(after <= before for before, after in zip([0, *epochs], epochs, strict=False)):
        raise Unreadable(f"its film.epochs do not rise: {cut(str(epochs))}")
    edges = expect(values["probabilities"], dict, "film.probabilities")
    if set(edges) != set(candidates):
        raise Unreadable(f"its film has {len(edges)} edges, which are not the search's {len(candidates)}")
    found: dict[str, Sequence[Sequence[float]]] = {}
    for label, names in candidates.items():
        place = f"film.probabilities.{cut(label)}"
        rows = expect(edges[label], list, place)
        if len(rows) != len(epochs):
            raise Unreadable(f"its {place} has {len(rows)} epochs, not {len(epochs)}")
        for row in rows:
            if len(expect(row, list, place)) != len(names):
                raise Unreadable(f"its {place} has {len(row)} candidates, not {len(names)}")
            for value in row:
                if not 0 <= expect(value, float, place) <= 1:
                    raise Unreadable(f"its {place} holds {value}, no probability")
        found[label] = rows
    return Film(tuple(epochs), found) if epochs else None
