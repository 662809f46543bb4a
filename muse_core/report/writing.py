"""Reports as files, and the one that a run writes at its end."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muse_core.errors import MuseError, typed
from muse_core.metrics.console import shown
from muse_core.report.charts import Chart, all_charts
from muse_core.report.drawing import png, script
from muse_core.report.page import page
from muse_core.report.reading import MADE, RunRead, read_run
from muse_core.report.tables import Table
from muse_core.storage.disk import Disk, make_directory, storage_errors, write_file_atomically

if TYPE_CHECKING:
    from muse_core.training.setup import Setup

PAGE = "report.html"
PICTURES = "pictures"


def write_report(runs: Sequence[RunRead], folder: Path, *, before: Sequence[tuple[str, Table]] = ()) -> Path:
    """Writes ``report.html`` and ``pictures/*.png`` into ``folder``; returns the page's path. Nothing is written before
    everything is drawn. Pictures of the page that was there go, and no other file. Raises RecipeError without the
    library and StorageError."""
    charts = all_charts(runs)
    text = page(runs, charts, script(), before=before)
    drawn = {chart.name: png(chart) for chart in _all(charts)}
    target = folder / PAGE
    missing = [one for one in (folder / PICTURES, folder) if not one.exists()]
    with storage_errors("write the report", folder):
        disk = Disk()
        try:
            make_directory(disk, folder / PICTURES)
            for name, data in drawn.items():
                write_file_atomically(disk, folder / PICTURES / f"{name}.png", data)
            for name in _pictures_of(target) - drawn.keys():
                (folder / PICTURES / f"{name}.png").unlink(missing_ok=True)
            write_file_atomically(disk, target, text.encode())
        except BaseException:
            for one in missing:
                with contextlib.suppress(OSError):  # it holds pictures that were written
                    one.rmdir()
            raise
    return target


def make_contents(run: Path, setup: Setup, step: int, *, cost: bool = False) -> dict[str, Any]:
    """Writes the run's ``report.json`` from its model; returns what stands in it. What ``--cost`` measured before
    stays. Raises StorageError."""
    from muse_core.data.tasks import TaskCorpus
    from muse_core.report.contents import encoded, parameters_of, sample_of, times_of

    kept = read_run(run, own=True).made
    sample = None if isinstance(setup.corpus, TaskCorpus) else sample_of(setup, step)  # a task has no text to go on
    made = {"parameters": parameters_of(setup), "sample": sample}
    if cost:
        made["times"] = times_of(setup)
    elif "times" in kept:
        made["times"] = kept["times"]
    with storage_errors("write", run / MADE):
        write_file_atomically(Disk(), run / MADE, encoded(made))
    return made


def report_of_run(run: Path, setup: Setup | None, step: int, say: Callable[[str], None]) -> None:
    """The report at the end of a run. Whatever fails is said in one sentence and changes nothing else: the run is
    done, and ``muse report`` makes the report later. ``setup`` None leaves out what needs the model."""
    try:
        if setup is not None:
            try:
                make_contents(run, setup, step)
            except Exception as error:  # a sample may fail in any plugin; the pictures need none
                say(f"the report has no sample: {_said(error)}")
        write_report([read_run(run, own=True)], run)
        say(f"report: {shown(run / PAGE)}")
    except Exception as error:
        say(f"no report was written: {_said(error)}; make it later by muse report {typed(run)}")


def _pictures_of(page: Path) -> set[str]:
    """The pictures of a report that was written before; none where there is no page. Raises OSError."""
    if not page.is_file():
        return set()
    return set(re.findall(r'id="picture-([\w-]+)"', page.read_text(encoding="utf-8", errors="replace")))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, MuseError) else f"{type(error).__name__}: {error}"


def _all(charts: dict[str, list[Chart]]) -> list[Chart]:
    return [chart for found in charts.values() for chart in found]
