"""Progress that a person can follow: stage, tokens, tokens per second, time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} {task.fields['unit']}/s")


class StageProgress:
    """Shows the stage that runs, and keeps how long each one took.

    Attributes:
        stage: Name of the stage that runs, or ran last.
        seconds: Wall time by stage.
    """

    def __init__(self, *, visible: bool) -> None:
        """Show progress on standard error if `visible`."""
        self.stage = ""
        self.seconds: dict[str, float] = {}
        self._display = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f} / {task.total:,.0f} {task.fields[unit]}"),
            _SpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not visible,
            transient=True,
        )
        self._visible = visible

    def __enter__(self) -> Self:
        """Start the display."""
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the display, leaving what was said on the screen."""
        self._display.stop()

    def say(self, message: str) -> None:
        """Print a line above the progress bars."""
        if self._visible:
            self._display.console.print(message, highlight=False, markup=False)

    @contextmanager
    def running(
        self, stage: str, description: str = "", total: int | None = None, *, unit: str = "tokens"
    ) -> Iterator[Callable[[int], None]]:
        """Time a stage, and show a bar if the number of its tokens, or what else it counts in, is known.

        Yields:
            A function to be told the number done.
        """
        self.stage = stage
        started = time.perf_counter()
        task = None if total is None else self._display.add_task(description or stage, total=total, unit=unit)
        if task is None:
            self.say(f"{description or stage} ...")
        try:
            yield lambda done: None if task is None else self._display.advance(task, done)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
            if task is not None:
                self._display.remove_task(task)
