"""The charts of the page: small figures of matplotlib as SVG within it, in the page's own colours and font."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hardware.reading import cut

from ..progress import epochs_in_words
from ..runs.finished import FinishedRun
from .boxes import is_large
from .drawing import Badge, draw_badges, draw_points, figure_bytes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What matplotlib draws in these colours, the page colours by its own variables, in light and in dark.
_INK, _SOFT, _LINE, _BACK = "#010101", "#020202", "#030303", "#040404"
_BLUE, _RED, _GREEN, _GREY = "#050505", "#060606", "#070707", "#080808"
_VARIABLES = {
    _INK: "ink",
    _SOFT: "soft",
    _LINE: "line",
    _BACK: "card",
    _BLUE: "blue",
    _RED: "red",
    _GREEN: "green",
    _GREY: "grey",
}
_WIDTH, _HEIGHT, _FONT = 3.6, 2.5, 8.5
_CURVE_POINTS = 12
_FEW_POINTS = 5  # of a large network, each of which takes the solver seconds
_MOST_BARS = 60
_LONGEST = 30
"""Letters of a bar's label: names of a user's own space may be of any length."""


class Chart(NamedTuple):
    """A chart and what is said of it.

    Attributes:
        svg: The element, ready for the page.
        title: What it shows.
        text: The same in a sentence, with its figures.
    """

    svg: str
    title: str
    text: str = ""


def _panel(height: float = _HEIGHT) -> tuple[Figure, Any]:
    figure = new_figure(_WIDTH, height)
    axes = figure.subplots()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.grid(color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelsize=_FONT, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_LINE)
    return figure, axes


def _named(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=_FONT, color=_SOFT)
    axes.set_ylabel(y, fontsize=_FONT, color=_SOFT)


def _with_legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 2 if max(map(len, labels)) < 24 else 1
        style = {"fontsize": _FONT, "frameon": False, "labelcolor": _INK, "borderpad": 0, "handlelength": 1.6}
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, **style)


def svg_of(figure: Figure, name: str) -> str:
    """Return a figure as an element of a page, hidden from screen readers, which read its caption.

    Args:
        figure: Its colours are this module's.
        name: Begins its ids, which must differ from those of the page's other figures.
    """
    text = figure_bytes(figure, "svg", words=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    box = re.search(r'viewBox="[\d. ]+"', opening)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {box[0] if box else ""} aria-hidden="true" focusable="false"'
    rest = rest.replace("xlink:href=", "href=")
    rest = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", rest)
    rest = re.sub("|".join(_VARIABLES), lambda found: f"var(--{_VARIABLES[found[0]]})", rest)
    return f"{opening}>{rest.strip()}"


# ---- on the way ------------------------------------------------------------------------------------------------


def progress(search: FinishedRun, name: str) -> list[Chart]:
    """Draw expected cost with its target, entropy, and validation accuracy over the epochs, as far as known."""
    cost = _over_epochs(search, f"{name}-cost", "expected", f"expected cost, {search.unit}")
    entropy = _over_epochs(search, f"{name}-entropy", "entropy", "entropy of an edge, nats")
    accuracy = _over_epochs(search, f"{name}-accuracy", "default", "accuracy of the supernet's paths")
    found = []
    if cost is not None:
        found.append(Chart(cost[0], "Expected cost", _went(cost[1], search.unit)))
    if entropy is not None:
        found.append(Chart(entropy[0], "Entropy", f"How undecided the edges are: {_went(entropy[1], 'nats')}"))
    if accuracy is not None:
        text = "Not the exported network's: all subnets share these weights, and a different one runs at each step."
        found.append(Chart(accuracy[0], "Validation accuracy in the search", text))
    return found


def _went(values: Sequence[float], unit: str) -> str:
    return f"from {values[0]:.4g} to {values[-1]:.4g} {unit}."


def _over_epochs(search: FinishedRun, name: str, key: str, title: str) -> tuple[str, list[float]] | None:
    points = [(row["epoch"], row[key]) for row in search.history if row.get(key) is not None]
    if not points:
        return None
    figure, axes = _panel()
    warmup = [row["epoch"] for row in search.history if row.get("phase") == "warmup"]
    if warmup:
        axes.axvspan(0.5, max(warmup) + 0.5, color=_LINE, alpha=0.5, linewidth=0, label="warm-up")
    axes.plot(*zip(*points, strict=True), color=_BLUE, linewidth=1.6, label="expected" if key == "expected" else None)
    last = max(row["epoch"] for row in search.history)
    if key == "expected" and search.target is not None:
        axes.axhline(search.target, color=_RED, linestyle="--", linewidth=1.2, label="target")
    if key == "expected" and search.subnet_cost is not None:
        label = "exported, measured" if search.is_measured else "exported, by the table"
        axes.plot(last + 0.5, search.subnet_cost, "o", markersize=4.5, color=_GREEN, label=label)
    if key == "default":
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axes.set_xlim(0.5, last + 1)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=7)
    _named(axes, "epoch", title)
    _with_legend(figure, axes)
    return svg_of(figure, name), [value for _, value in points]


# ---- the trade-off ---------------------------------------------------------------------------------------------


def trade_off(search: FinishedRun, name: str) -> list[Chart]:
    """Draw what other budgets would give, and the finalists by their loss."""
    return [chart for chart in (_curve(search, f"{name}-curve"), _finalists(search, f"{name}-finalists")) if chart]


def _curve(search: FinishedRun, name: str) -> Chart | None:
    points = search.curve(_FEW_POINTS if is_large(search) else _CURVE_POINTS)
    if len(points) < 2:
        return None
    figure, axes = _panel(2.7)
    axes.plot(*zip(*points, strict=True), "o-", color=_BLUE, markersize=3, linewidth=1.4, label="likeliest in a budget")
    rest = search.finalists[1:]
    if rest:
        places = [f.cost for f in rest], [f.log_probability for f in rest]
        axes.plot(*places, "o", color=_GREY, markersize=4, markerfacecolor="none", label="other finalists")
    if search.finalists:
        best = search.finalists[0]
        axes.plot(best.cost, best.log_probability, "D", color=_GREEN, markersize=5, label="exported")
    if search.target is not None:
        axes.axvline(search.target, color=_RED, linestyle="--", linewidth=1.2, label="target")
    axes.locator_params(axis="x", nbins=4)
    _named(axes, f"cost, {search.unit}", "log-probability of the subnet")
    _with_legend(figure, axes)
    text = (
        f"{len(points)} subnets, from {points[0][0]:.4g} to {points[-1][0]:.4g} {search.unit}. How likely the search "
        "holds a subnet to be the best of its cost, which is not its accuracy."
    )
    return Chart(svg_of(figure, name), "What each budget would give", text)


def _finalists(search: FinishedRun, name: str) -> Chart | None:
    known = [(f.cost, f.loss) for f in search.finalists if f.loss is not None]
    if len(known) < 2:
        return None
    figure, axes = _panel(2.7)
    axes.plot(*zip(*known[1:], strict=True), "o", color=_GREY, markersize=4, markerfacecolor="none", label="finalists")
    axes.plot(*known[0], "D", color=_GREEN, markersize=5, label="exported")
    if search.target is not None:
        axes.axvline(search.target, color=_RED, linestyle="--", linewidth=1.2, label="target")
    axes.margins(0.12)
    axes.locator_params(axis="x", nbins=4)
    _named(axes, f"cost, {search.unit}", "loss on architecture images")
    _with_legend(figure, axes)
    accuracy = search.row.get("accuracy")
    how = "with the supernet's weights"
    if search.finalists_epochs:
        how = f"after {epochs_in_words(search.finalists_epochs)} of training each"
    elif search.finalists_dtype != "float32":
        how += f", quantised to {search.finalists_dtype[:20]}"
    text = (
        f"{len(known)} subnets within the target {how}: loss "
        f"{min(y for _, y in known):.4g} to {max(y for _, y in known):.4g}."
    )
    if accuracy is not None:
        text += f" The exported one has {accuracy:.2%} test accuracy after retraining."
    return Chart(svg_of(figure, name), "Finalists by their loss", text)


# ---- where the cost goes -----------------------------------------------------------------------------------------


def cost_by_block(search: FinishedRun, name: str) -> Chart | None:
    """Draw the exported subnet's cost by block; of a large network by the kind of operator."""
    network = search.network
    if network is None:
        return None
    bars: dict[str, float] = {}
    counts: dict[str, int] = {}
    by_kind = is_large(search)
    for item in (*network.order, *network.beside):
        chosen = network.edges[item].get(search.choices.get(item, "")) if isinstance(item, str) else item
        if chosen is None:
            continue
        kind = chosen.key.split("-")[0].replace("_", " ")
        label = kind if by_kind or not isinstance(item, str) else f"{item}  {search.choices[item]}"
        if label in bars and not by_kind:
            counts[label] = counts.get(label, 1) + 1
            label = f"{label} {counts[label]}"
        bars[label] = bars.get(label, 0.0) + chosen.cost
    bars["session and calibration"] = network.constant
    # what is fixed and costs nothing is no bar
    shown = [(label, cost) for label, cost in bars.items() if cost or "  " in label][:_MOST_BARS]
    if not shown:
        return None
    figure, axes = _panel(0.19 * len(shown) + 0.5)
    axes.grid(visible=False, axis="y")
    colours = [_BLUE if by_kind or "  " in label else _GREY for label, _ in shown]
    axes.barh(range(len(shown)), [cost for _, cost in shown], color=colours, height=0.7)
    for number, (_, cost) in enumerate(shown):
        # to the right of a negative bar too: to its left stand the names
        place = {"xytext": (2, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{cost:.3g}", (max(cost, 0.0), number), fontsize=_FONT - 1, color=_SOFT, **place)
    axes.set_yticks(range(len(shown)), [cut(label, _LONGEST) for label, _ in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.16)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(search.unit, fontsize=_FONT, color=_SOFT)
    total = network.cost(search.choices)
    dearest = max(shown, key=lambda bar: bar[1])
    text = f"{total:.4g} {search.unit} in all, most of it in {dearest[0].replace('  ', ', ')} ({dearest[1]:.3g})."
    return Chart(svg_of(figure, name), f"Cost by {'kind of operator' if by_kind else 'block'}, {search.unit}", text)


# ---- several searches ------------------------------------------------------------------------------------------


def pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Return the numbers of the points of which no other is as cheap and better, or as good and cheaper.

    >>> sorted(pareto_front([(1.0, 0.7), (2.0, 0.9), (2.0, 0.8), (3.0, 0.9)]))
    [0, 1]

    Args:
        points: Cost, which shall be low, and accuracy, which shall be high.
    """
    return {
        number
        for number, (cost, accuracy) in enumerate(points)
        if not any(
            other <= cost and better >= accuracy and (other, better) != (cost, accuracy) for other, better in points
        )
    }


def hardware_groups(searches: Sequence[FinishedRun]) -> dict[tuple[str | None, str], list[int]]:
    """Return the numbers of the searches that have accuracy and cost, from 0, by hardware and unit."""
    found: dict[tuple[str | None, str], list[int]] = {}
    for number, search in enumerate(searches):
        if search.row.get("accuracy") is not None and search.subnet_cost is not None:
            found.setdefault((search.row.get("hardware"), search.unit), []).append(number)
    return found


def on_front(searches: Sequence[FinishedRun]) -> set[int]:
    """Return the numbers of the searches, from 0, that no other one of their hardware and unit outdoes."""
    front: set[int] = set()
    for numbers in hardware_groups(searches).values():
        places = pareto_front([(searches[n].subnet_cost or 0.0, searches[n].row["accuracy"]) for n in numbers])
        front |= {numbers[place] for place in places} if len(numbers) > 1 else set()
    return front


def comparison(searches: Sequence[FinishedRun]) -> list[Chart]:
    """Draw test accuracy over cost, numbered as in `searches`, a chart for each hardware and unit with several."""
    charts, front = [], on_front(searches)
    for index, ((hardware, unit), numbers) in enumerate(hardware_groups(searches).items()):
        if len(numbers) < 2:
            continue
        figure, axes = _panel(3.0)
        points = {n: (float(searches[n].subnet_cost or 0), 100 * searches[n].row["accuracy"]) for n in numbers}
        best = sorted(points[n] for n in numbers if n in front)
        axes.plot(*zip(*best, strict=True), color=_GREEN, linewidth=1.4, label="Pareto front")
        badges = [Badge(str(n + 1), *points[n], _GREEN if n in front else _GREY) for n in numbers]
        draw_points(axes, badges)
        axes.margins(0.2)
        axes.locator_params(nbins=5)
        measured = {searches[n].is_measured for n in numbers}
        how = (
            "measured" if measured == {True} else "by the table" if measured == {False} else "measured or by the table"
        )
        if not unit.startswith("ms"):
            how = "by the table" if unit.startswith("mJ") else "counted"
        _named(axes, f"{unit}, {how}", "test accuracy, %")
        _with_legend(figure, axes)
        draw_badges(figure, [(axes, badges)], edge=_BACK)
        names = ", ".join(str(n + 1) for n in sorted(front & set(numbers)))
        title = "Test accuracy over cost" + (f" on {hardware}" if hardware else "")
        text = f"On the Pareto front, green: {names}. Nothing among these is both as cheap and better."
        charts.append(Chart(svg_of(figure, f"compared{index}"), title, text))
    return charts
