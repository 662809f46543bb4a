"""What a comparison has found so far, as a table for people and as JSON. Imports no torch."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from muse_core.comparison.backends import backends_of, unlike
from muse_core.comparison.cells import Cell, scores_by_value, sweepless
from muse_core.comparison.plan import ComparisonPlan, Value, value_name
from muse_core.comparison.ratio import (
    FEW_DOCUMENTS,
    Measured,
    other_text,
    paired,
    paired_by_source,
    read_rows,
    told_interval,
    with_interval,
)
from muse_core.comparison.runs import Runs
from muse_core.errors import StorageError
from muse_core.evaluation.references import MEANING, weakest_not_reached
from muse_core.metrics.finished import read_summary
from muse_core.metrics.jsonl import own_rows as records_of
from muse_core.metrics.standing import standing
from muse_core.report.forms import markdown, write_forms
from muse_core.report.reading import of_task
from muse_core.report.tables import Table, bits_unit
from muse_core.storage.canonical_json import numbers

OTHER_SECONDS = 0.1
"""Departure from a budget of seconds, as a share of it, from which the report says what training took."""


def compose(plan: ComparisonPlan, runs: Runs) -> dict[str, Any]:
    """Reads what the runs have left; nothing is run. Everything in the result is plain JSON."""
    done = {
        variant.name: {c.seed: c for c in runs.reported if c.variant == variant and c.summary() is not None}
        for variant in plan.variants
    }
    unmeasured = {cell.variant.name for cell in runs.measuring if cell.failure() is not None}
    dead = sweepless(plan, runs.tuning)
    watched = {name: _watched(plan, cells.values()) for name, cells in done.items()} if plan.watch else {}
    return {
        "name": plan.name,
        "measure": plan.measure,
        "of_task": any(of_task(summary) for c in runs.all if (summary := c.summary()) is not None),
        "counted": plan.parameter_kind,
        "split": plan.split,
        "baseline": plan.baseline,
        "tuned_key": plan.tune.key if plan.tune else None,
        "budget_seconds": plan.budget.seconds if plan.budget else None,
        "steps": runs.steps,
        "trained_otherwise": list(runs.trained_otherwise),
        "arms": [_variant(plan, variant.name, runs.values.get(variant.name), done) for variant in plan.variants],
        "sweep": {
            variant.name: {value_name(value): score for value, score in
                       scores_by_value(plan, [c for c in runs.tuning if c.variant == variant])}
            for variant in plan.variants
        } if plan.tune else {},
        "sweep_cut_short": sum(
            bool(summary.get("stopped_by_time")) for c in runs.tuning if (summary := c.summary()) is not None
        ),
        "at_the_edge": [variant.name for variant in plan.variants if _at_the_edge(plan, runs.values.get(variant.name))],
        "watched": watched,
        "not_found": [
            one for one in plan.watch if any(done.values()) and not any(one in found for found in watched.values())
        ],
        "failed": {c.name: reason for c in runs.all if (reason := c.failure()) is not None},
        "left": [c.name for c in runs.all if not c.settled()],
        "waiting_for_the_sweep": [
            variant.name for variant in plan.variants
            if variant.name not in runs.values and variant.name not in {*dead, *unmeasured}
        ],
        "sweep_failed": dead,
        "reported_failed": [c.name for c in (*runs.measuring, *runs.reported) if c.failure() is not None],
    }


def _at_the_edge(plan: ComparisonPlan, value: Value | None) -> bool:
    """Whether the best value tried is the smallest or largest, so that a better one may lie beyond."""
    tried = plan.tune.values if plan.tune else ()
    if len(tried) < 2 or any(isinstance(one, bool | str) for one in tried):
        return False
    return value in (min(tried), max(tried))


def _variant(plan: ComparisonPlan, name: str, value: Value | None, done: dict[str, dict[int, Cell]]) -> dict[str, Any]:
    own, base = done[name], done[plan.baseline]
    row: dict[str, Any] = {"name": name, "value": value, "seeds": sorted(own)}
    if not own:
        return row
    summaries = [read_summary(cell.path) for cell in own.values()]

    def mean(key: str) -> float:
        return sum(summary[key] for summary in summaries) / len(summaries)

    tokens, seconds = (
        [summary.of_all_stages(key) for summary in summaries] for key in ("train_tokens", "train_seconds")
    )
    parameter_kind = plan.parameter_kind.replace(" ", "_")
    for cell, summary in zip(own.values(), summaries, strict=True):
        if parameter_kind not in summary:
            raise StorageError(
                f"{cell.path}: this run of an earlier version does not tell its {plan.parameter_kind} - remove the "
                "folder to repeat it"
            )
    row |= {
        "parameters": summaries[0][parameter_kind],
        "state": summaries[0].get("state_numbers"),  # runs of an earlier version do not have it
        "tokens": sum(tokens) / len(tokens),
        "seconds": sum(seconds) / len(seconds),
        "tokens_per_second": sum(one / other if other else 0.0 for one, other in zip(tokens, seconds)) / len(tokens),
        "mean": mean(f"held_out_{plan.measure}"),
        # Keys of JSON are texts.
        "by_seed": {str(seed): summary[f"held_out_{plan.measure}"] for seed, summary in zip(own, summaries)},
        "device": sorted({summary["device"] for summary in summaries}),
        "kernels": backends_of(cell.path for cell in own.values()),
        "cut_short": sum(summary["stopped_by_time"] for summary in summaries),
        "not_learned": _not_learned(summaries),
    }
    common = sorted(own.keys() & base.keys())
    if common and name != plan.baseline:
        rows = [{seed: _rows_of(cells[seed].path, plan.measure) for seed in common} for cells in (own, base)]
        other = next((read for seed in common if (read := other_text(rows[0][seed], rows[1][seed]))), None)
        if other is None:
            ratio = plan.measure != "accuracy"
            row["against_baseline"] = attrs.asdict(paired(*rows, ratio=ratio))
            row["by_source"] = {key: attrs.asdict(one) for key, one in paired_by_source(*rows, ratio=ratio).items()}
        else:
            row["other_text"] = other
    return row


def _not_learned(summaries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Predictor that learns next to nothing → runs that are not better; the weakest of each run."""
    worse = [weakest_not_reached(summary) for summary in summaries]
    return {name: worse.count(name) for name in MEANING if name in worse}


def _rows_of(run: Path, measure: str) -> Measured:
    return read_rows(run, measure, read_summary(run)[f"held_out_{measure}"])


def _watched(plan: ComparisonPlan, cells: Iterable[Cell]) -> dict[str, list[float | None]]:
    """Pattern → [first, last, held out] over all runs, reduced over layers by the suffix of the name. First and last of
    rows of training or probes; None where there is nothing of the kind."""
    moments: tuple[dict[str, list[float]], ...] = ({}, {}, {})
    for cell in cells:
        rows = [numbers(row) for row in standing(records_of(cell.path / "metrics.jsonl"))]
        trained = [row for row in rows if row.get("event") in ("train", "probe")]
        final = [row for row in rows if row.get("event") == "final"][:1]
        for found, part in zip(moments, (trained[::-1], trained, final)):
            newest = {key: value for row in part for key, value in row.items()}
            for pattern in plan.watch:
                values = [value for key, value in newest.items() if fnmatch.fnmatchcase(key, pattern)]
                found.setdefault(pattern, []).extend(value for value in values if isinstance(value, int | float))
    reduced = {pattern: [_reduced(pattern, found.get(pattern)) for found in moments] for pattern in plan.watch}
    return {pattern: values for pattern, values in reduced.items() if values != [None] * 3}


def _reduced(pattern: str, values: list[float] | None) -> float | None:
    if not values:
        return None
    if any(map(math.isnan, values)):
        return math.nan
    if pattern.endswith("_min"):
        return min(values)
    return max(values) if pattern.endswith("_max") else sum(values) / len(values)


def text_of(report: dict[str, Any]) -> str:
    """The report as tables of Markdown."""
    parts = (_measured(report), _by_seed(report), _by_source(report), _swept(report), _missing(report))
    return "\n".join(line for part in parts for line in part) + "\n"


def _measure(report: dict[str, Any]) -> str:
    """What is measured, in words: bits of a task are per counted token."""
    measure = report["measure"]
    return bits_unit(report["of_task"]) if measure == "bits_per_byte" else str(measure).replace("_", " ")


def measured_table(report: dict[str, Any]) -> Table:
    """A row for each variant, empty before its first run is done."""
    versus = "difference" if report["measure"] == "accuracy" else "ratio"
    columns = (
        "variant", report["tuned_key"] or "tuned", report["counted"], "state", "tokens", "training s", "tokens/s",
        "seeds", _measure(report), versus, "interval",
    )
    rows = []
    for variant in report["arms"]:
        if not variant["seeds"]:
            rows.append((variant["name"], *[""] * (len(columns) - 1)))
            continue
        against = variant.get("against_baseline")
        rows.append((
            variant["name"], "" if variant["value"] is None else value_name(variant["value"]),
            f"{variant['parameters']:,}", "" if variant["state"] is None else f"{variant['state']:,}",
            f"{variant['tokens']:,.0f}", f"{variant['seconds']:,.1f}",
            f"{variant['tokens_per_second']:,.0f}", str(len(variant["seeds"])), f"{variant['mean']:.4f}",
            *((f"{against['value']:.4f}", told_interval(against)) if against else ("", "")),
        ))
    return Table(columns=columns, rows=rows)


def measured_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """``measured_table`` with all digits, and None for what is not known yet."""
    versus = "difference" if report["measure"] == "accuracy" else "ratio"
    plain = ("parameters", "state", "tokens", "seconds", "tokens_per_second")
    rows = []
    for variant in report["arms"]:
        against = variant.get("against_baseline") or {}
        rows.append({
            "variant": variant["name"], report["tuned_key"] or "tuned": variant["value"],
            **{key: variant.get(key) for key in plain}, "seeds": len(variant["seeds"]),
            report["measure"]: variant.get("mean"), versus: against.get("value"),
            **{key: against.get(key) for key in ("low", "high", "documents")},
        })
    return rows


def _measured(report: dict[str, Any]) -> list[str]:
    measure = _measure(report)
    versus = "difference" if report["measure"] == "accuracy" else "ratio"
    lines = [
        f"# {report['name']}",
        "",
        f"Held-out {measure} on {report['split']} text; {versus} to {report['baseline']}, paired by seed, data order "
        "and document, with its 95 % interval.",
        "",
        markdown(measured_table(report)).rstrip(),
    ]
    if report["budget_seconds"] is not None:
        told = ", ".join(f"{name} {steps:,}" for name, steps in report["steps"].items()) or "none yet"
        seconds = f"{report['budget_seconds']:g} s"
        lines[3:3] = ["", f"Equal training time, {seconds} a run. Steps by the speed that was measured: {told}.",
                      *_other_seconds(report)]
    lines += [f"\n{sentence}." for sentence in report["trained_otherwise"]]
    base = next(variant for variant in report["arms"] if variant["name"] == report["baseline"])
    for variant in report["arms"]:
        paired_seeds = variant.get("against_baseline", {}).get("seeds")
        if paired_seeds is not None and paired_seeds < max(len(variant["seeds"]), len(base["seeds"])):
            lines.append(
                f"\n{variant['name']} has the seeds {_seeds(variant)} and {report['baseline']} {_seeds(base)}: the "
                f"{versus} is over the {paired_seeds} that both have, the other columns over those of each."
            )
    unit = "bytes" if report["measure"] == "bits_per_byte" else "tokens"
    lines += [
        f"\n{variant['name']} was evaluated on another stretch of text than {report['baseline']} "
        f"({variant['other_text']}, in {unit}) and is not compared with it."
        for variant in report["arms"] if variant.get("other_text")
    ]
    few = [variant["against_baseline"]["documents"] for variant in report["arms"] if variant.get("against_baseline")]
    single = bool(few) and min(few) <= 1
    pairs = [variant["against_baseline"]["seeds"] for variant in report["arms"] if variant.get("against_baseline")]
    if 1 in (*pairs, *(len(variant["seeds"]) for variant in report["arms"])):
        lines += ["", "With one seed and one document there is no interval." if single else
                  "With one seed the interval is of the text alone and knows no spread of training."]
    if single:
        lines += ["", "The text is one document, which tells of no spread over texts - evaluate on more of them before "
                  "a claim."]
    elif few and min(few) < FEW_DOCUMENTS:
        lines += ["", f"The text weighs as {min(few):.0f} documents of equal size; with fewer than {FEW_DOCUMENTS} the "
                  "interval is wide, and rests on few documents - evaluate on more of them before a claim."]
    lines += [
        f"\n{variant['cut_short']} of {len(variant['seeds'])} runs of {variant['name']} were cut short by "
        "train.max_seconds."
        for variant in report["arms"] if variant.get("cut_short")
    ]
    lines += [
        f"\n{count} of {len(variant['seeds'])} runs of {variant['name']} are not better than {MEANING[name]}."
        for variant in report["arms"] for name, count in variant.get("not_learned", {}).items()
    ]
    computed = {variant["name"]: variant["kernels"] for variant in report["arms"] if variant.get("kernels")}
    return lines + [f"\n{sentence}" for sentence in unlike(computed)]


def _other_seconds(report: dict[str, Any]) -> list[str]:
    """Where training took other seconds than the budget's, as on a machine that was not alike in measuring and then."""
    meant = report["budget_seconds"]
    took = [(one["name"], one["seconds"]) for one in report["arms"] if one["seeds"]]
    if all(abs(seconds / meant - 1) <= OTHER_SECONDS for _, seconds in took):
        return []
    told = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in took)
    return ["", f"Training took {told}. Runs that share a machine take longer, and their steps hold. But where "
            "something else worked on it while the speed was measured, the steps are not those of "
            f"{meant:g} s - measure again with another --output before a claim."]


def _seeds(variant: dict[str, Any]) -> str:
    return ", ".join(map(str, variant["seeds"]))


def _by_seed(report: dict[str, Any]) -> list[str]:
    """What each run has, where there are several seeds: a mean over seeds does not tell whether they agree."""
    seeds = sorted({seed for variant in report["arms"] for seed in variant["seeds"]})
    if len(seeds) < 2:
        return []
    measure = _measure(report)
    rows = [
        (variant["name"], *(f"{found:.4f}" if (found := variant["by_seed"].get(str(seed))) is not None else ""
                            for seed in seeds))
        for variant in report["arms"] if variant["seeds"]
    ]
    columns = ("variant", *(f"seed {seed}" for seed in seeds))
    return ["", f"By seed, {measure}:", "", markdown(Table(columns=columns, rows=rows)).rstrip()]


def _by_source(report: dict[str, Any]) -> list[str]:
    found = {variant["name"]: one for variant in report["arms"] if (one := variant.get("by_source"))}
    if not found:
        return []
    sources = sorted({source for one in found.values() for source in one})
    weigh = next(iter(found.values()))
    told = ", ".join(f"{source} as {weigh[source]['documents']:.0f}" for source in sources if source in weigh)
    rows = [
        (name, *(with_interval(one[source]) if source in one else "" for source in sources))
        for name, one in found.items()
    ]
    return [
        "", f"By the source of the text, which weighs for {told} documents of equal size:", "",
        markdown(Table(columns=("variant", *sources), rows=rows)).rstrip(),
    ]


def _swept(report: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if any(report["sweep"].values()):
        keys = list(dict.fromkeys(key for scores in report["sweep"].values() for key in scores))
        measure = _measure(report)
        lines += ["", f"Sweep of {report['tuned_key']} on validation text, {measure}:", ""]
        lines += ["| variant | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
        for name, scores in report["sweep"].items():
            cells = (f"{scores[key]:.4f}" if key in scores else "" for key in keys)
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if report["sweep_cut_short"]:
        lines += ["", f"{report['sweep_cut_short']} runs of the sweep were cut short by train.max_seconds."]
    if report["at_the_edge"]:
        who = ", ".join(report["at_the_edge"])
        lines += ["", f"The best value tried is the smallest or largest for {who}: a better one may lie beyond; widen "
                  "the sweep, as with --values, before a claim."]
    if any(report["watched"].values()):
        lines += ["", "| variant | metric | first | last | held out |", "|---|---|---|---|---|"]
        lines += [
            f"| {name} | `{pattern}` | " + " | ".join("" if one is None else f"{one:.4g}" for one in values) + " |"
            for name, found in report["watched"].items() for pattern, values in found.items()
        ]
    lines += [f"\nwatch: no metric of these runs is called {pattern} - `muse show RUN --json` has the names."
              for pattern in report["not_found"]]
    return lines


def _missing(report: dict[str, Any]) -> list[str]:
    lines = [f"\nFailed: {name}: {reason}" for name, reason in report["failed"].items()]
    if report["left"]:
        lines += ["", f"Left to run: {', '.join(report['left'])}."]
    if report["waiting_for_the_sweep"]:
        lines += ["", f"Reported runs wait for the sweep of: {', '.join(report['waiting_for_the_sweep'])}."]
    if report["sweep_failed"]:
        lines += ["", f"No value of the sweep could be judged for: {', '.join(report['sweep_failed'])}; runs of each "
                  "failed, or gave no finite number."]
    return lines


def write(report: dict[str, Any], output: Path) -> None:
    """``report.json``, ``report.md``, and its first table as ``report.csv`` and ``report.tex``, in the folder of the
    comparison. Raises StorageError."""
    write_forms(output, report, text_of(report), measured_rows(report), measured_table(report))
