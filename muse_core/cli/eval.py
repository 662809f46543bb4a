"""``muse eval``: what finished runs can do, by suites."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from muse_core.cli.errors import MEMORY, guarded, warn
from muse_core.cli.given_device import GivenDevice
from muse_core.cli.given_path import GivenPath
from muse_core.cli.printed import console, print_table
from muse_core.cli.run_arguments import run_argument
from muse_core.cli.threads import prepare_torch
from muse_core.data.plain_text import DOCUMENTS
from muse_core.errors import MuseError
from muse_core.out_of_memory import told


@click.command(name="eval")
@run_argument("runs", several=True)
@click.option("--suite", "names", help="Suites apart by commas [default: all that the run allows].")
@click.option("--text", "texts", multiple=True, type=GivenPath(path_type=Path, dir_okay=False),
              help="Read this UTF-8 file in place of the run's own held-out text. May be repeated.")
@click.option("--documents", type=click.Choice(list(DOCUMENTS)),
              help="What a document of --text is; intervals resample documents [default: file].")
@click.option("--tokens", default=65_536, show_default=True, type=click.IntRange(min=2),
              help="Tokens of text to read at most, in each suite that does.")
@click.option("--length", "lengths", multiple=True, type=click.IntRange(min=1),
              help="Tokens of a window beside the training length, a multiple of it; may be repeated [default: 2, 4 "
              "and 8 times it].")
@click.option("--samples", default=4, show_default=True, type=click.IntRange(min=1),
              help="Rows of text in each of the five depths of a needle map; mqar has eight times as many.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1), help="Seed of what is drawn.")
@click.option("--step", type=click.IntRange(min=0), help="Take the weights of this step's checkpoint.")
@click.option("--device", type=GivenDevice(),
              help="auto, cpu, cuda or cuda:<index> [default: as the run's recipe says].")
@click.option("--json", "as_json", is_flag=True, help="One JSON list of rows, for scripts and data frames.")
def evaluate(
    runs: tuple[Path, ...], names: str | None, texts: tuple[Path, ...], documents: str | None, tokens: int,
    lengths: tuple[int, ...], samples: int, seed: int, step: int | None, device: str | None, as_json: bool,
) -> None:
    """Measure the newest weights of RUNS, run directories.

    \b
    held-out    loss and bits per byte at the training length
    length      bits per byte by context length, same text
    recall      loss where the bigram stood in the context before, and where not
    needles     RULER's needle family: recall by length and depth
    mqar        recall of pairs of tokens, by their number or by length
    importance  signal to noise, energy, recency and share filtered of memories
    causality   the causality gate's checks with the weights of now
    cost        time, memory and state bytes per token, by length

    Intervals hold 95 % and resample documents. With --text no text of the run is opened. A run that cannot be measured
    is said to be so, and the others go on.

    \b
    Exit codes: 0 done; 2 arguments or device; 3 no such run, no trained
    checkpoint, or text that cannot be used; 5 plugin; 7 memory ran out.
    """
    with guarded():
        prepare_torch()
        from muse_core.evaluation.suites import chosen
        suites = chosen(names)
        from muse_core.evaluation.runs import evaluate_run, table
        from muse_core.storage.canonical_json import spelled

        results = []
        refused: MuseError | None = None
        for run in runs:
            try:
                # What a plugin prints when it is imported is not the answer.
                with told(MEMORY.format), contextlib.redirect_stdout(sys.stderr):
                    found = evaluate_run(
                        run, suites, asked=names is not None, texts=texts, documents=documents, step=step,
                        device=device, tokens=tokens, lengths=lengths, samples=samples, seed=seed, say=warn,
                        begins=_on_terminal,
                    )
            except MuseError as error:
                if len(runs) == 1:
                    raise
                refused = refused or error
                warn(str(error) if str(run) in str(error) else f"{run}: {error}")
                continue
            finally:
                _on_terminal("")
            results.append(found)
            if not as_json:
                _show(found)
        if as_json:
            print(json.dumps(spelled(table(results)), indent=2, allow_nan=False))
        if refused is not None:
            raise SystemExit(refused.exit_code)


def _on_terminal(suite: str) -> None:
    """What is measured now, in a line that the next one replaces; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{suite} …" if suite else "\r\x1b[K", end="", file=sys.stderr, flush=True)


def _show(result: dict[str, Any]) -> None:
    shown = console()
    shown.print(f"{result['run']} at step {result['step']:,}", style="bold", soft_wrap=True)
    for suite, rows in result["suites"].items():
        few = any(row.get("few_documents") and row.get("low") is not None for row in rows)
        titles = {"bits_per_byte": "bits per token"} if any(row.get("bits_per") == "token" for row in rows) else {}
        rows = [_short(row) for row in rows]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        print_table(
            shown,
            [titles.get(name, _title(name)) for name in columns],
            [[_told(row[name]) if name in row else "" for name in columns] for row in rows],
            title=suite,
            keys=1 + max((columns.index(name) for name in KEYS if name in columns), default=0),
            numbers=[titles.get(name, _title(name)) for name in columns if not _words(rows, name)],
        )
        if few:
            shown.print(FEW, style="dim")
        shown.print()


FEW = "The text weighs as few documents of equal size: intervals are too narrow; read more by --tokens or other text."
ONLY_IN_JSON = ("perplexity", "words", "word_perplexity", "bytes", "by_chance", "few_documents", "device", "bits_per")
KEYS = ("text", "form", "layer", "pairs", "length", "bigram")
"""What tells rows of a suite apart, at their beginning."""
INTERVALS = {"low": ("high", "95 % over text, not seeds"), "ratio_low": ("ratio_high", "ratio 95 %")}


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A row as people read it: intervals in one cell, without what is seldom looked at."""
    short: dict[str, Any] = {}
    for name, value in row.items():
        if name in INTERVALS:
            high, title = INTERVALS[name]
            short[title] = None if value is None else f"{value:.4g} to {row[high]:.4g}"
        elif name not in ONLY_IN_JSON and name not in [high for high, _ in INTERVALS.values()]:
            short[name] = value
    return short


def _title(name: str) -> str:
    return name.replace("_", " ")


def _words(rows: list[dict[str, Any]], name: str) -> bool:
    return any(isinstance(row.get(name), str) for row in rows)


def _told(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(f"{one:.2f}" for one in value)
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
