"""The film of finished searches as a GIF, and the architectures that they ended in as an SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardware.errors import ConfigError
from hardware.files import write_atomically
from hardware.reading import reading

from ..runs.finished import RECORD, FinishedRun, read_runs
from .boxes import Block, Group, Still, groups, is_large, kinds, stills
from .drawing import FIXED_COLOUR, KIND_COLOURS, draw_canvas, figure_bytes, new_figure

MOST_SEARCHES = 12
MOST_FRAMES = 100
"""Frames of a GIF; of a longer film every second one is in it, or every third, ..."""
_LAST_PAUSE = 2500  # ms, before the film begins again
_ELSEWHERE = "choose another place with --out"
_LARGE_SLOT = 0.24
_ROW = 32.0
"""Greatest width of a row, in blocks with words."""


def draw_film(folder: Path, out: Path) -> Path:
    """Draw the likeliest subnet of each epoch of the searches in a folder, one below the other.

    Args:
        folder: See `read_runs`.
        out: A .gif file.

    Raises:
        ConfigError: There is no finished search with its probabilities by epoch, there are too many, or `out` cannot be
            written.
    """
    with reading(folder, RECORD):
        searches = _few(read_runs(folder), folder)
        films = [stills(search) for search in searches]
        if all(len(film) < 2 for film in films):
            raise ConfigError(
                f"{folder} keeps no probabilities by epoch, as an earlier version searched it; search again for a "
                "film, or end the name with .svg for the architecture"
            )
        content = _gif([_Reel(search) for search in searches], films)
    write_atomically(out, content, error=ConfigError, remedy=_ELSEWHERE)
    return out


def _gif(reels: Sequence[_Reel], films: Sequence[Sequence[Still]]) -> bytes:
    from PIL import Image  # slow

    figure, panels = _figure(reels, dpi=100)
    length = max(map(len, films))
    shown = [*range(0, length - 1, -(-length // MOST_FRAMES)), length - 1]
    frames = []
    for number in shown:
        for reel, panel, film in zip(reels, panels, films, strict=True):
            reel.draw(panel, film[min(number, len(film) - 1)])
        draw_canvas(figure)
        # Nothing moves from one frame to the next but what is drawn, and laying out takes most of the time.
        figure.set_layout_engine("none")
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]))
    buffer = io.BytesIO()
    pause = max(80, min(250, 8000 // len(shown)))  # ms
    pauses = [*[pause] * (len(frames) - 1), _LAST_PAUSE]
    frames[0].save(buffer, format="gif", save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    return buffer.getvalue()


def draw_architecture(folder: Path, out: Path) -> Path:
    """Draw the exported subnets of the searches in a folder, one below the other.

    Args:
        folder: See `read_runs`.
        out: A .svg file.

    Raises:
        ConfigError: There is no finished search, there are too many, or `out` cannot be written.
    """
    with reading(folder, RECORD):
        content = architecture_picture(_few(read_runs(folder), folder))
    write_atomically(out, content, error=ConfigError, remedy=_ELSEWHERE)
    return out


def architecture_picture(searches: Sequence[FinishedRun], *, kind: str = "svg") -> bytes:
    """Return a picture of the exported subnets, one below the other."""
    reels = [_Reel(search) for search in searches]
    figure, panels = _figure(reels)
    for reel, panel in zip(reels, panels, strict=True):
        reel.draw(panel, stills(reel.search)[-1])
    return figure_bytes(figure, kind)


def _few(searches: list[FinishedRun], folder: Path) -> list[FinishedRun]:
    if len(searches) > MOST_SEARCHES:
        raise ConfigError(
            f"{folder} holds {len(searches)} searches, more than the {MOST_SEARCHES} that one picture shows; give the "
            "folder of one of them"
        )
    return searches


def _figure(reels: Sequence[_Reel], *, dpi: float | None = None) -> tuple[Any, list[Any]]:
    width = max(reel.width for reel in reels)
    heights = [reel.height for reel in reels]
    figure = new_figure(max(6.0, 0.44 * width), sum(heights) * 0.62, dpi=dpi)
    panels = figure.subplots(len(reels), 1, squeeze=False, height_ratios=heights)
    return figure, [row[0] for row in panels]


class _Reel:
    """A search's network laid out: where each block stands does not change from one still to the next."""

    def __init__(self, search: FinishedRun) -> None:
        self.search = search
        self.large = is_large(search)
        self.parts = groups(search)
        self.numbers = kinds(self.parts)
        self.slot = _LARGE_SLOT if self.large else 1.0
        self.gap = 0.3 if self.large else 0.5
        self.drop = 2.2 if self.large else 3.0  # from one row to the next
        self.places = list(self._places())
        self.rows = 1 + max((row for _, row, _ in self.places), default=0)
        self.width = max((x + self.slot * len(part.blocks) for part, _, x in self.places), default=1.0)
        self.height = self.drop * self.rows + 0.9

    def _places(self) -> Iterator[tuple[Group, int, float]]:
        """Yield every group with its row and where it begins there."""
        row, x = 0, 0.0
        for part in self.parts:
            # words under a group of one block take more room than the block
            width = self.slot * max(len(part.blocks), 1 if self.large else 2)
            if x and x + width > _ROW:
                row, x = row + 1, 0.0
            yield part, row, x
            x += width + self.gap

    def draw(self, axes: Any, still: Still) -> None:
        """Draw one still in place of what was there."""
        axes.clear()
        axes.set(xlim=(-0.3, max(self.width, 6.0) + 0.3), ylim=(-self.height + 2.0, 1.5))
        axes.axis("off")
        known = [f"{still.cost:.4g} {self.search.unit}"] if still.cost is not None else []
        title = ", ".join([self.search.name, still.name, *known])
        axes.text(0, 1.45, title, fontsize=9, va="top")
        for part, row, x in self.places:
            base = -row * self.drop
            for number, block in enumerate(part.blocks):
                self._draw_block(axes, block, still, x + self.slot * number, base)
            under = base - (0.12 if self.large else 1.0)
            words = part.name if self.large else f"{part.name}\n{part.size.replace(', ', chr(10), 1)}"
            turned = {"rotation": 90} if self.large else {}
            axes.text(x, under, words, fontsize=7.5, va="top", color="#5d6b7a", linespacing=1.1, **turned)

    def _draw_block(self, axes: Any, block: Block, still: Still, x: float, base: float) -> None:
        from matplotlib.patches import Rectangle  # slow

        place, odds = 0, 1.0
        if block.names:
            choice = still.choices.get(block.label, "")
            place = block.names.index(choice) if choice in block.names else 0
            odds = still.odds.get(block.label, {}).get(choice, 1.0)
        shape = block.shapes[place]
        number = self.numbers.get(shape.kind)
        colour = FIXED_COLOUR if number is None else KIND_COLOURS[number % len(KIND_COLOURS)]
        middle = x + self.slot / 2
        if shape.passes:
            axes.plot([x + 0.1 * self.slot, x + 0.9 * self.slot], [base + 0.02] * 2, color="#8a94a0", linewidth=1.5)
        else:
            width = self.slot * 0.86 * shape.width
            corner = (middle - width / 2, base)
            axes.add_patch(Rectangle(corner, width, shape.height, color=colour, alpha=0.12 + 0.88 * odds, linewidth=0))
            axes.add_patch(Rectangle(corner, width, shape.height, fill=False, edgecolor=colour, linewidth=1.0))
        if self.large:
            return
        words = f"{'skip' if shape.passes else shape.kind}\n{shape.side}"
        axes.text(middle, base - 0.1, words, fontsize=7.5, ha="center", va="top", linespacing=1.1)
        if block.costs:
            axes.text(
                middle, base - 0.62, f"{block.costs[place]:.2g}", fontsize=6, ha="center", va="top", color="#5d6b7a"
            )
