"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text


def shown(path: Path) -> str:
    """The path from here, when it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


NUMBERS = len("loss 2.0825  3.005 bits/byte  1,413,000 tokens/s")
TIME = len("0:00:00")
LONGEST_BAR = 24


def _columns(width: int, total: int) -> list[ProgressColumn]:
    """What fits into a terminal of ``width`` columns: the numbers and the time left always, then a bar, then the name
    and the time that has passed. Where they do not fit, all columns would be cut."""
    count = TextColumn("{task.completed}/{task.total}", table_column=_whole())
    numbers = TextColumn("{task.fields[numbers]}", table_column=_whole())
    left = [TextColumn("left", table_column=_whole()), TimeRemainingColumn(table_column=_whole())]
    room = width - (2 * len(str(total)) + 1) - NUMBERS - len("left") - TIME - 3  # less the spaces between
    passed = [TimeElapsedColumn(table_column=_whole())] if room > LONGEST_BAR + TIME + len("train") + 3 else []
    name = [TextColumn("{task.description}", table_column=_whole())] if passed else []
    bar = [BarColumn(bar_width=min(room - 1, LONGEST_BAR))] if room > 4 else []
    return [*name, *bar, count, numbers, *passed, *left]


def _whole() -> Column:
    return Column(no_wrap=True)


class Display:
    """Prints a run. ``console`` decides whether there is a terminal."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self.of_text = True
        """Whether bits per byte are of bytes; in a task they are the loss in bits."""
        self._bar: Progress | None = None
        self._task = None
        self._started = time.monotonic()
        self._first = 0
        self._total = 0

    def say(self, message: str, style: str = "") -> None:
        """One line of text, above the bar if there is one; never interpreted as markup."""
        console = self._bar.console if self._bar else self.console
        console.print(Text(message, style=style), soft_wrap=True)

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """A two-column table."""
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for key, value in rows.items():
            table.add_row(Text(key, style="dim"), Text(value))
        self.console.print(table)

    def start(self, total: int, completed: int) -> None:
        """Begin the loop's bar."""
        self._started, self._first, self._total = time.monotonic(), completed, total
        if self.console.is_terminal:
            self._bar = Progress(*_columns(self.console.width, total), console=self.console)
            self._task = self._bar.add_task("train", total=total, completed=completed, numbers="")
            self._bar.start()

    def step(self, step: int, row: Mapping[str, float] | None) -> None:
        """After each step; ``row`` is the telemetry row when this step has one."""
        numbers = "" if row is None else self._numbers(row)
        if self._bar is not None:
            fields = {"numbers": numbers} if row is not None else {}
            self._bar.update(self._task, completed=step, **fields)
        elif row is not None:
            self.say(f"step {step}/{self._total}  {numbers}  left {self._left(step)}")

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _numbers(self, row: Mapping[str, float]) -> str:
        parts = [f"loss {row['loss']:.4f}"]
        if self.of_text and math.isfinite(row.get("bits_per_byte", math.nan)):
            parts.append(f"{row['bits_per_byte']:.3f} bits/byte")
        counted = "" if self.of_text else "counted "  # in a task most tokens have no label that counts
        parts.append(f"{row['tokens_per_second']:,.0f} {counted}tokens/s")
        return "  ".join(parts)

    def _left(self, step: int) -> str:
        done = step - self._first
        if done <= 0:
            return "-"
        seconds = (time.monotonic() - self._started) / done * (self._total - step)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
