"""Progress with an estimate of what remains: a live bar in a terminal, a line every 10 % elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def duration(seconds: float) -> str:
    """1 h 05 min, 3 min 20 s, 12 s."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of steps done so far."""
    if sys.stderr.isatty():
        yield from _bar(title, total)
    else:
        yield _lines(total)


def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title[:50], total=max(total, 1))
        yield lambda done: bar.update(task, completed=done)


def _lines(total: int) -> Callable[[int], None]:
    began = time.monotonic()
    first: list[int] = []
    shown = [-1]

    def advance(done: int) -> None:
        if not first:
            first.append(done)
        tenth = done * 10 // max(total, 1)
        if tenth <= shown[0] or not total:
            return
        shown[0] = tenth
        fresh, spent = done - first[0], time.monotonic() - began
        rest = f", {duration(spent * (total - done) / fresh)} left" if fresh and done < total else ""
        print(f"flattrain: {10 * tenth} %, {duration(spent)}{rest}", file=sys.stderr, flush=True)

    return advance
