"""A run directory as data for reports: finished, stopped or in progress. Imports no torch, loads no plugin."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from muse_core.errors import RecipeError, StorageError
from muse_core.metrics.finished import NAME, SHOWN, Summary, read_summary
from muse_core.metrics.jsonl import own_rows
from muse_core.metrics.standing import standing
from muse_core.storage import canonical_json
from muse_core.storage.directory_lock import in_use
from muse_core.storage.disk import read_file, storage_errors
from muse_core.storage.run_directory import require_run

MADE = "report.json"
"""File with what the report shows and no other file of a run holds; see ``contents``."""
SILENT = ("gate", "notice", "incident", "schema", "weights", "drift")
"""Events that interrupt nothing: they are listed, and not marked in curves."""
TOKENIZER = "tokenizer.json"
NUMBERS = b'{"kind": "numbers"'
"""How the description of a task's tokens begins; see ``muse_core.data.tokenizers.Numbers``."""
SAMPLE = ("step", "prompt", "text", "temperature", "seed")
"""Keys of a sample."""
MAX_BYTES = 64 * 2**20
UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@attrs.frozen(kw_only=True, eq=False)
class RunRead:
    """What a run directory holds. Steps of stage s are counted on from those of the stages before it."""

    path: Path
    label: str
    """Name of the run in pictures; different runs of one report have different ones."""
    state: str
    """``done``, ``running``, ``interrupted``, ``halted`` or ``unfinished``."""
    recipe: dict[str, Any]
    recipe_text: str
    lock: dict[str, Any]
    lock_text: str
    summary: Summary
    """Empty before the end."""
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    finals: list[dict[str, Any]]
    events: list[dict[str, Any]]
    made: dict[str, Any]
    """Content of ``report.json``."""
    needle_maps: list[dict[str, Any]]
    """Rows of the suite ``needles`` in evaluation files: ``form``, ``length``, ``by_depth``."""
    on_task: bool
    """Whether it is a run on a task, whose bits are per counted token."""

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", self.label))

    @property
    def steps(self) -> int:
        """Of the newest row, or where the run was interrupted, halted or ended behind it."""
        last = (row for row in self.events[-1:] if row["event"] in ("interrupted", "halt") and "x" in row)
        ended = [self.summary["steps"]] if self._one_stage and self.state == "done" else []
        return max([*ended, *(row["x"] for row in (*self.train, *self.evaluations, *last))], default=0)

    @property
    def _one_stage(self) -> bool:
        stages = [stage.get("use") if isinstance(stage, dict) else stage for stage in self.recipe.get("stages", ())]
        return len([stage for stage in stages if stage != "evaluate"]) < 2

    @property
    def progress(self) -> tuple[int, int | None]:
        """Steps, and how many are planned. Of several stages, each of which plans its own: once the run has ended those
        of the last one, as its summary has them; before that the steps of all, and None."""
        if self._one_stage:
            return self.steps, self.recipe.get("train", {}).get("steps")
        if self.summary and self.state in ("done", "halted"):
            return self.summary["steps"], self.summary["planned_steps"]
        return self.steps, None


def read_run(path: Path, label: str | None = None, *, own: bool = False) -> RunRead:
    """Reads a run directory, which is not changed; ``own``: the caller holds its lock. Raises StorageError for one that
    is none or has a damaged file."""
    require_run(path)
    recipe, recipe_text = _toml(path / "recipe.toml")
    lock, lock_text = _toml(path / "muse.lock.toml") if (path / "muse.lock.toml").is_file() else ({}, "")
    events = [canonical_json.numbers(row) for row in own_rows(path / "events.jsonl")]
    rows = [canonical_json.numbers(row) for row in standing(own_rows(path / "metrics.jsonl"), events)]
    starts = _starts(rows)
    summary = read_summary(path)
    if (path / NAME).is_file():
        summary.require(SHOWN)
    return RunRead(
        path=path,
        label=label or path.resolve().name,
        state=_stopped(summary, events, rows) if own or not in_use(path) else "running",
        recipe=recipe,
        recipe_text=recipe_text,
        lock=lock,
        lock_text=lock_text,
        summary=summary,
        train=_by_step(rows, "train", starts),
        evaluations=_by_step(rows, "eval", starts),
        probes=_by_step(rows, "probe", starts),
        finals=[row for row in rows if row["event"] == "final"],
        events=[row | ({"x": _x(row, starts)} if "step" in row else {}) for row in events],
        made=_content(path / MADE),
        needle_maps=_needle_maps(path),
        on_task=of_task(summary) if summary else _has_numbers(path),
    )


def of_task(summary: Mapping[str, Any]) -> bool:
    """Whether a summary is of a task, in which what is called bits per byte is bits per counted token."""
    return "unigram" not in summary.get("references", {"unigram": {}})  # runs of an earlier version have none


def _has_numbers(path: Path) -> bool:
    """Whether the tokens of a run that has no summary yet are the numbers of a task, by the tokenizer that it keeps."""
    file = path / TOKENIZER
    if not file.is_file():
        return False
    with storage_errors("read", file), file.open("rb") as opened:  # of byte pairs it has megabytes
        return opened.read(len(NUMBERS)) == NUMBERS


def read_runs(paths: Iterable[Path]) -> list[RunRead]:
    """Several runs, each with a label that no other has. Raises as ``read_run``, and RecipeError for one named
    twice."""
    real = [path.resolve() for path in paths]
    for path in real:
        if real.count(path) > 1:
            raise RecipeError(f"{path}: is named twice - name every run once")
    labels = [path.name for path in real]
    deep = [f"{path.parent.name}/{path.name}" for path in real]
    if len(set(labels)) < len(labels):
        labels = deep if len(set(deep)) == len(deep) else [str(path) for path in real]
    return [read_run(path, label) for path, label in zip(real, labels, strict=True)]


def plain(value: object) -> str:
    """A value as text in which characters that neither XML nor UTF-8 holds, control characters among them, are shown
    as replaced."""
    return UNSHOWN.sub("\ufffd", str(value))


def finite(row: dict[str, Any], key: str) -> float | None:
    """A number of a row; None where there is none or it is not finite."""
    value = row.get(key)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _starts(rows: list[dict[str, Any]]) -> dict[int, int]:
    """Stage → steps of the stages before it."""
    longest: dict[int, int] = {}
    for row in rows:
        if "step" in row:
            stage = row.get("stage", 0)
            longest[stage] = max(longest.get(stage, 0), row["step"])
    starts, before = {}, 0
    for stage in sorted(longest):
        starts[stage] = before
        before += longest[stage]
    return starts


def _x(row: dict[str, Any], starts: dict[int, int]) -> int:
    return int(starts.get(row.get("stage", 0), 0) + row["step"])


def _by_step(rows: list[dict[str, Any]], event: str, starts: dict[int, int]) -> list[dict[str, Any]]:
    """The rows of an event; ``x`` is the step."""
    return [row | {"x": _x(row, starts)} for row in rows if row["event"] == event]


def _stopped(summary: dict[str, Any], events: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """A run that was gone on with keeps the summary of its earlier end until its next one."""
    last = events[-1]["event"] if events else ""
    kinds = [row["event"] for row in rows]
    gone_on = "final" in kinds and "train" in kinds[kinds.index("final"):]
    ended = "done" if summary and not gone_on else "unfinished"
    return {"interrupted": "interrupted", "halt": "halted"}.get(last, ended)


def _toml(path: Path) -> tuple[dict[str, Any], str]:
    try:
        with storage_errors("read", path):
            text = read_file(path, limit=MAX_BYTES).decode("utf-8")
        return tomllib.loads(text), text
    except ValueError as error:
        raise StorageError(f"{path}: is damaged ({error}) - restore it from a copy") from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        with storage_errors("read", path):
            found = canonical_json.numbers(json.loads(read_file(path, limit=MAX_BYTES)))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: is damaged ({error}) - restore it from a copy, or remove it") from None
    if not isinstance(found, dict):
        raise StorageError(f"{path}: is no JSON object - restore it from a copy, or remove it")
    return found


def _content(file: Path) -> dict[str, Any]:
    """``report.json`` as ``contents`` makes it."""
    found = _json(file)
    sample, times = found.get("sample"), found.get("times", {})
    drawn = isinstance(sample, dict) and set(SAMPLE) <= sample.keys() and isinstance(sample["step"], int)
    sound = (
        _counted(found.get("parameters", []), "parameters")
        and (sample is None or drawn)
        and isinstance(times, dict) and _counted(times.get("rows", []), "seconds")
        and isinstance(times.get("tokens", 0), int)
    )
    if not sound:
        raise StorageError(f"{file}: is damaged (it is not what a report of this run holds) - remove it: muse report "
                           "--model makes it anew")
    return found


def _counted(rows: object, key: str) -> bool:
    """Whether these are rows of components with a number ``key`` each."""
    return isinstance(rows, list) and all(
        isinstance(row, dict) and "component" in row and finite(row, key) is not None
        and ("bytes" not in row or finite(row, "bytes") is not None) for row in rows
    )


def _needle_maps(path: Path) -> list[dict[str, Any]]:
    """Of the suites in evaluation files; what another stage has written there in another shape is passed over."""
    found = []
    for file in sorted(path.glob("evaluation-*.json")):
        suites = _json(file).get("suites")
        rows = suites.get("needles") if isinstance(suites, dict) else None
        found += [row for row in rows if _is_map(row)] if isinstance(rows, list) else []
    return found


def _is_map(row: object) -> bool:
    if not isinstance(row, dict) or not {"form", "length", "by_depth"} <= row.keys():
        return False
    shares = row["by_depth"]
    return finite(row, "length") is not None and isinstance(shares, list) and all(
        finite({"share": share}, "share") is not None for share in shares
    )
