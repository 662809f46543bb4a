"""The page of a report: one HTML file that asks nothing of any network. Imports no torch."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from muse_core.report.charts import Chart, theme
from muse_core.report.reading import RunRead, plain
from muse_core.report.style import DRAW, FOLLOW, STYLE
from muse_core.report.tables import (
    Table,
    events_table,
    key_numbers,
    monitors_table,
    recipe_differences,
    runs_table,
)

SECTIONS = {
    "curves": ("Loss and bits", "No step was recorded yet."),
    "gradients": ("Gradients and learning rate", "No step was recorded yet."),
    "layers": ("Decay and memory energy by layer", "No layer of this model measures decay or energy."),
    "needles": ("Needles", "No needle probe has run; the monitor niah-probe makes them."),
    "throughput": ("Throughput", "No step was recorded yet."),
    "components": ("Weights and time by component",
                   "Not counted: muse report --model RUN measures weights, and --cost measures time."),
}
"""Sections with pictures: heading, and what is said where there is none."""
SENTENCE = 60
"""Characters above which a cell holds a sentence."""
WORD = 20
"""Characters above which a word, such as a path, may be broken anywhere."""


def page(
    runs: Sequence[RunRead], charts: dict[str, list[Chart]], script: str, *, live: bool = False,
    before: Sequence[tuple[str, Table]] = (),
) -> str:
    """``script`` draws the pictures. ``live`` makes the page load itself anew when its server says that the run has
    gone on; it then asks that server and nothing else. ``before`` are headings and tables to begin with."""
    title = " · ".join(run.label for run in runs)
    parts = [f"<h1>{_text(title)}</h1>", _cards(runs[0]) if len(runs) == 1 else ""]
    if len(runs) > 1:
        parts.append(_section("runs", "Runs", _table(runs_table(runs))))
    for number, (heading, table) in enumerate(before):
        parts.append(_section(f"about-{number}", heading, _table(table)))
    for name, (heading, nothing) in SECTIONS.items():
        said = _note(name, runs)
        body = "".join(map(_figure, charts[name])) or f"<p>{_text(nothing)}</p>"
        parts.append(_section(name, heading, body + said))
    parts.append(_section("sample", "Sample", "".join(_sample(run, runs) for run in runs)))
    parts.append(_section("monitors", "Monitors", "".join(_of_run(run, runs, monitors_table(run)) for run in runs)))
    parts.append(_section("events", "Events", "".join(_of_run(run, runs, events_table(run)) for run in runs)))
    if len(runs) > 1:
        differing = recipe_differences(runs)
        parts.append(_section("differences", "Differing recipe keys",
                              _table(differing) if differing.rows else "<p>The recipes are equal.</p>"))
    parts.append(_section("recipe", "Recipe", "".join(_file(r, runs, "recipe.toml", r.recipe_text) for r in runs)))
    parts.append(_section("lock", "Lock", "".join(_file(r, runs, "muse.lock.toml", r.lock_text) for r in runs)))
    drawn = {f"picture-{chart.name}": chart.spec for found in charts.values() for chart in found}
    connect = "connect-src 'self'; " if live else ""
    policy = f"default-src 'none'; {connect}script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; " \
             "img-src data:"
    scripts = [script.replace("</script", "<\\/script"), DRAW] + ([FOLLOW] if live else [])
    themes = {"light": theme(dark=False) | {"background": "transparent"}, "dark": theme(dark=True)}
    return "".join([
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
        f"<title>{_text(title)} – MUSE</title><style>{STYLE}</style></head><body><main>",
        *parts,
        f"<footer>Written {time.strftime('%Y-%m-%d %H:%M:%S %Z')} by muse-core {_text(_version(runs[0]))}; drawn by "
        "Vega-Lite.</footer></main>",
        _data("themes", themes), _data("pictures", drawn),
        *(f"<script>{text}</script>" for text in scripts), "</body></html>\n",
    ])


def _version(run: RunRead) -> str:
    for package in run.lock.get("packages", []):
        if package.get("name") == "muse-core":
            return str(package.get("version", ""))
    return ""


def _text(value: object) -> str:
    """The value as text of the page: nothing in it is markup."""
    return html.escape(plain(value))


def _data(name: str, value: Any) -> str:
    """JSON in a page: nothing in it can end its element."""
    told = json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return f'<script type="application/json" id="{name}">{told}</script>'


def _section(name: str, heading: str, body: str) -> str:
    return f'<section id="{name}"><h2>{_text(heading)}</h2>{body}</section>'


def _figure(chart: Chart) -> str:
    return (
        f'<figure><figcaption>{_text(chart.title)}</figcaption><div class="picture" id="picture-{_text(chart.name)}" '
        f'role="img" aria-label="{_text(chart.alt)}"></div></figure>'
    )


def _cards(run: RunRead) -> str:
    cards = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in key_numbers(run))
    return f'<dl class="cards">{cards}</dl>'


def _table(table: Table) -> str:
    if not table.rows:
        return f"<p>{_text(table.nothing)}</p>"
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.columns)
    rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    more = f"<p>{_text(table.more)}</p>" if table.more else ""
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide" tabindex="0">{whole}</div>{more}'


def _cell(text: str) -> str:
    """A sentence keeps a width at which it can be read, and words stay whole, however narrow the page is."""
    kinds = {"sentence": len(text) > SENTENCE, "broken": any(len(word) > WORD for word in text.split())}
    told = " ".join(kind for kind, holds in kinds.items() if holds)
    start = f'<td class="{told}">' if told else "<td>"
    return f"{start}{_text(text)}</td>"


def _of_run(run: RunRead, runs: Sequence[RunRead], table: Table) -> str:
    return _headed(run, runs) + _table(table)


def _headed(run: RunRead, runs: Sequence[RunRead]) -> str:
    return f"<h3>{_text(run.label)}</h3>" if len(runs) > 1 else ""


def _note(name: str, runs: Iterable[RunRead]) -> str:
    if name == "components" and not any(run.made.get("times") for run in runs):
        return "<p>Time is measured by muse report --cost.</p>" if any(run.made for run in runs) else ""
    if name == "curves":
        several = ("Thin lines are training, thick ones with points held-out text; dashed ones mark events of the run "
                   "of their colour. ") if len(list(runs)) > 1 else ""
        return f"<p>{several}The first twentieth of a run's steps may lie above the picture.</p>"
    return ""


def _sample(run: RunRead, runs: Sequence[RunRead]) -> str:
    sample = run.made.get("sample")
    if not sample:
        said = "No sample: a task has no text." if run.on_task else \
            "No sample: a run draws one at its end, and muse report --model draws one from its newest checkpoint."
        return f"{_headed(run, runs)}<p>{_text(said)}</p>"
    about = f"Step {sample['step']:,}, temperature {sample['temperature']}, seed {sample['seed']}. " \
            "In bold the prompt, from validation text."
    return f"{_headed(run, runs)}<p>{_text(about)}</p><pre class=\"sample\"><b>{_text(sample['prompt'])}</b>" \
           f"{_text(sample['text'])}</pre>"


def _file(run: RunRead, runs: Sequence[RunRead], name: str, content: str) -> str:
    if not content:
        return f"{_headed(run, runs)}<p>There is no {_text(name)}.</p>"
    summary = f"<summary>{_text(name)}, {content.count(chr(10)):,} lines</summary>"
    return f"{_headed(run, runs)}<details>{summary}<pre>{_text(content)}</pre></details>"
