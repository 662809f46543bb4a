"""Two or more finished runs against one of them: what differs, by how much, and what a stated test says. Imports no
torch."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from muse_core.comparison.ratio import (
    FEW_DOCUMENTS,
    Measured,
    Paired,
    other_text,
    paired,
    paired_by_source,
    read_rows,
    told_interval,
    with_interval,
)
from muse_core.errors import RecipeError, StorageError, typed
from muse_core.evaluation.references import MEANING, weakest_not_reached
from muse_core.given import path as path_of
from muse_core.report.forms import markdown, write_forms
from muse_core.report.reading import RunRead, of_task, read_runs
from muse_core.report.tables import Table, bits_unit, recipe_differences

TEST = (
    "two-sided test at the 5 % level: better or worse where the 95 % interval of the ratio, the jackknife over "
    "documents with Student's t, leaves out 1"
)


def compare(*runs: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Finished runs against the last one, as ``muse compare A B`` holds them: a row for each run, a table for
    ``pandas.DataFrame``. ``ratio`` is that of ``bits_per_byte`` to the last one's, paired by document, ``low`` to
    ``high`` its 95 % interval, None on a text of one document; they and ``verdict`` are None for the last one. Nothing
    is written. Raises as ``compare_runs``."""
    if len(runs) < 2:
        raise RecipeError("compare takes two or more run directories, each its own argument")
    return compared_rows(compare_runs(read_runs([path_of("a run", run) for run in runs])))


def compare_runs(runs: Sequence[RunRead]) -> dict[str, Any]:
    """Every run against the last one, as plain JSON. Raises StorageError for a run that is not finished and RecipeError
    for runs that were not measured on the same text or task."""
    for run in runs:
        if not run.summary:
            go_on = f"go on with muse-run --resume {typed(run.path)}"
            raise StorageError(f"{run.path}: is not finished ({run.state}) - {go_on}")
    base = runs[-1]
    return {
        "measure": "bits_per_byte",
        "unit": bits_unit(of_task(base.summary)),
        "split": base.summary["held_out_split"],
        "baseline": base.label,
        "test": TEST,
        "runs": [
            {"name": run.label, "path": str(run.path), "parameters": run.summary["parameters"],
             "steps": run.summary["steps"], "seed": run.summary["seed"],
             "bits_per_byte": run.summary["held_out_bits_per_byte"],
             "tokens_per_second": run.summary["tokens_per_second"], "device": run.summary["device"]}
            for run in runs
        ],
        "against_baseline": [_against(run, base) for run in runs[:-1]],
        "recipe": {row[0]: list(row[1:]) for row in recipe_differences(runs).rows},
    }


def _against(run: RunRead, base: RunRead) -> dict[str, Any]:
    remarks = [*_require_comparable(run, base)]
    remarks += [remark for one in (run, base) for remark in (*_gone_on(one), *_not_learned(one))]
    own, theirs = (
        read_rows(one.path, "bits_per_byte", one.summary["held_out_bits_per_byte"]) for one in (run, base)
    )
    _require_same_documents(run, base, own, theirs)
    found = paired({0: own}, {0: theirs}, ratio=True)
    if found.low is None:
        remarks.append("the text is one document, so that there is no interval and no verdict")
    elif found.documents < FEW_DOCUMENTS:
        remarks.append(f"the text weighs as {found.documents:.0f} documents of equal size: with fewer than "
                       f"{FEW_DOCUMENTS} the interval is unreliable")
    remarks.append("one run each: the interval is of the text alone and knows no spread of training")
    known = math.isfinite(found.value)
    if not known:
        remarks.append("a run's loss on this text is no finite number, so that there is no verdict")
    verdict = (
        "no verdict" if found.low is None or found.high is None or not known
        else "better" if found.high < 1 else "worse" if found.low > 1 else "no difference shown"
    )
    by_source = {key: _numbers(one) for key, one in paired_by_source({0: own}, {0: theirs}, ratio=True).items()}
    remarks += [f"{key}: {with_interval(one)}" for key, one in by_source.items()]
    return {"run": run.label, **_numbers(found), "verdict": verdict, "by_source": by_source, "remarks": remarks}


def _gone_on(run: RunRead) -> Iterator[str]:
    """Of a run that was extended and has not come to its new end, which keeps the numbers of its earlier one."""
    if run.state != "done":
        step = run.summary["steps"]
        yield f"{run.label} has gone on since ({run.state}): its figures are of its end at step {step:,}"


def _not_learned(run: RunRead) -> Iterator[str]:
    """That two runs of which one learned next to nothing differ tells little."""
    name = weakest_not_reached(run.summary)
    if name is not None:
        yield f"{run.label} is not better than {MEANING[name]}"


def _numbers(found: Paired) -> dict[str, float | None]:
    return {key: value for key, value in attrs.asdict(found).items() if key not in ("by_seed", "seeds")}


def _require_comparable(run: RunRead, base: RunRead) -> list[str]:
    """What is to say of a pair that may be compared. Raises RecipeError for one that may not."""
    one, other = ({"split": r.summary["held_out_split"], "length": _length(r.path)} for r in (run, base))
    for what, name in (("split", "evaluate.split"), ("length", "length of the evaluated rows")):
        if one[what] != other[what]:
            raise RecipeError(
                f"{run.path} and {base.path} cannot be compared: {name} is {one[what]} and {other[what]} - evaluate "
                "both alike"
            )
    digests = [r.lock.get("digests", {}) for r in (run, base)]
    for key in ("data", "tokenizer"):
        if not all(key in one for one in digests):
            raise StorageError(f"{run.path} or {base.path}: the lock has no digests.{key} - restore muse.lock.toml")
    other_tokens = digests[0]["tokenizer"] != digests[1]["tokenizer"]
    tasks = [of_task(r.summary) for r in (run, base)]
    # Text in other tokens has another digest; what a task gives has no bytes that could be the same.
    if digests[0]["data"] != digests[1]["data"] and (any(tasks) or not other_tokens):
        what = (
            "one is of a task and the other of text - train both on one [data]" if any(tasks) and not all(tasks) else
            "their task differs (digests.data of the locks) - train both on one task" if all(tasks) else
            "their text differs (digests.data of the locks) - train or evaluate both on one text"
        )
        raise RecipeError(f"{run.path} and {base.path} cannot be compared: {what}")
    return ["the tokenizers differ, so that only bits per byte mean the same"] if other_tokens else []


def _require_same_documents(run: RunRead, base: RunRead, own: Measured, theirs: Measured) -> None:
    """Raises RecipeError unless both read as many bytes of every document: then it is the same text."""
    if read := other_text(own, theirs):
        one, other = (r.lock["digests"]["tokenizer"] for r in (run, base))
        advice = "give both one evaluate.final_tokens" if one == other else \
            "set evaluate.final_tokens so that both read all of the text, or give both one tokenizer"
        raise RecipeError(
            f"{run.path} and {base.path} cannot be compared: they were evaluated on different stretches of text "
            f"({read}, in bytes) - {advice}"
        )


def _length(run: Path) -> int:
    try:
        return int(json.loads((run / "held_out.json").read_text(encoding="utf-8"))["length"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{run / 'held_out.json'}: cannot be read ({error!r}) - it is written at the end of a run") \
            from None


def verdict_table(report: dict[str, Any]) -> Table:
    """Ratio, interval and verdict of every run against the baseline."""
    rows = [
        (one["run"], f"{one['value']:.4f}", told_interval(one), f"{one['documents']:.1f}",
         one["verdict"], "; ".join(one["remarks"]))
        for one in report["against_baseline"]
    ]
    versus = f"{report['unit']} over {report['baseline']}"
    return Table(
        columns=("run", versus, "95 % interval", "documents", "verdict", "remarks"),
        rows=rows, more=f"Held-out {report['split']} text, paired by document; {report['test']}.",
    )


def compared_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each run, the baseline last: its numbers, and the ratio of its bits per byte to the baseline's with the
    95 % interval, None for the baseline itself."""
    against = {one["run"]: one for one in report["against_baseline"]}
    told = (("ratio", "value"), ("low", "low"), ("high", "high"), ("documents", "documents"), ("verdict", "verdict"))
    rows = []
    for run in report["runs"]:
        own = against.get(run["name"], {})
        remarks = {"remarks": "; ".join(own["remarks"]) if own else None}
        rows.append({
            "run": run["name"], **{key: value for key, value in run.items() if key != "name"},
            "baseline": report["baseline"], **{name: own.get(key) for name, key in told}, **remarks,
        })
    return rows


def compared_table(report: dict[str, Any]) -> Table:
    """``compared_rows`` for a page."""
    rows = []
    for one in compared_rows(report):
        ratio = ("1", "", "") if one["ratio"] is None else (
            f"{one['ratio']:.4f}", told_interval(one), one["verdict"]
        )
        rows.append((
            one["run"], f"{one['parameters']:,}", f"{one['steps']:,}", f"{one['tokens_per_second']:,.0f}",
            f"{one['bits_per_byte']:.4f}", *ratio,
        ))
    return Table(
        columns=("run", "parameters", "steps", "tokens/s", report["unit"], f"ratio to {report['baseline']}",
                 "95 % interval", "verdict"),
        rows=rows,
    )


def folder_for(runs: Sequence[RunRead], within: Path) -> Path:
    """Where a comparison of these runs goes: a folder named by the first and the last of them that is not there yet, or
    has the comparison of the same runs, which is made anew. Names that are taken get more of the path, then a
    number."""
    ends = (runs[0], runs[-1])
    by_label = "-against-".join("-".join(Path(run.label.lstrip("/")).parts[-3:]) for run in ends)
    deeper = "-against-".join("-".join(run.path.parts[1:][-2:]) for run in ends)
    names = itertools.chain([by_label, deeper], (f"{deeper}-{number}" for number in itertools.count(2)))
    return next(within / name for name in names if _has_none_but(within / name, runs))


def _has_none_but(folder: Path, runs: Sequence[RunRead]) -> bool:
    """Whether nothing is there but the comparison of these runs."""
    if not os.path.lexists(folder):
        return True
    try:
        found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return [one["path"] for one in found["runs"]] == [str(run.path) for run in runs]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # of something else, or damaged


def write_compared(report: dict[str, Any], folder: Path) -> None:
    """``report.json``, and its table as ``report.md``, ``report.csv`` and ``report.tex``. Raises StorageError for a
    folder that takes no files."""
    table = compared_table(report)
    told = f"Held-out {report['split']} text; {report['test']}."
    below = [f"- {one['run']}: {remark}" for one in report["against_baseline"] for remark in one["remarks"]]
    write_forms(folder, report, "\n".join([markdown(table), told, "", *below, ""]), compared_rows(report), table)
