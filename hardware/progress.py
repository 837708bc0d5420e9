"""The progress bar of a long measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(progress: bool, title: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar with the time left; yield what moves it to the share (0..1) of the work that is done."""
    if not progress:
        yield lambda share: None
        return
    # for people only; a run in a script or a trial needs none of it
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)
