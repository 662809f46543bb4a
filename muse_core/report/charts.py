"""What is drawn of runs, as Vega-Lite specifications with their alternative texts. Imports no torch.

A specification has no colours: those of light and dark pages come from ``theme``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from muse_core.report.reading import SILENT, RunRead, finite, plain
from muse_core.report.tables import bits_unit

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
MOST_POINTS = 400
"""Points of a curve; of longer ones every n-th is drawn, and the last."""
MOST_MARKS = 200
"""Events that are marked in a curve."""
BEGINNING = 0.05
"""Share of the steps whose values may lie above the top of a curve's axis."""
LAYER = re.compile(r"(?P<before>.*?)(?P<depth>\d+)\.(?P<component>.+)")


@attrs.frozen(kw_only=True, eq=False)
class Chart:
    """One picture."""

    name: str
    """Of its element and of its PNG file."""
    title: str
    alt: str
    """What it shows, in words, for whoever cannot see it."""
    spec: dict[str, Any]


def thinned(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most ``MOST_POINTS`` points and the last."""
    stride = -(-len(points) // MOST_POINTS) if points else 1
    kept = list(points[::stride])
    return kept if not points or kept[-1] is points[-1] else [*kept, points[-1]]


NARROW = 360
"""Pixels of the narrowest page, a telephone's, into which legends fit: they cannot follow the width of the page."""


AT_THE_END = "held out at the end"
"""The evaluation of all of ``evaluate.final_tokens``."""


def curves(runs: Sequence[RunRead], key: str, name: str, title: str, axis: str) -> Chart | None:
    """Training and held-out values over steps with the events of the runs; None without any value."""
    single = len(runs) == 1
    train, held_out, ends, marks, within = [], [], [], [], []
    for run in runs:
        own = []
        for rows, into, what in (
            (run.train, train, "training"), (run.evaluations, held_out, "held out"), (_ended(run), ends, AT_THE_END)
        ):
            points = [
                {"x": point["x"], "y": point["y"], "series": what if single else run.label} | point["more"]
                for point in thinned(_points(rows, key))
            ]
            into += points
            own += points
        within += _after_beginning(own)
        marks += _marks(run, single)
    if not train and not held_out and not ends:
        return None
    low, top = _range(within)
    y = {"field": "y", "type": "quantitative", "title": axis, "scale": {"domain": [low, top], "zero": False}}
    names = ["training", "held out", *([AT_THE_END] if ends else [])] if single else [run.label for run in runs]
    color = _color(list(dict.fromkeys([*names, *(mark["series"] for mark in marks)])))
    x = _steps()
    tooltip = [_tip("x", "step", ","), _tip("y", axis, ".4f"), _tip("series", "run" if not single else "of")]
    layers: list[dict[str, Any]] = [
        _layer(train, {"type": "line", "clip": True, "strokeWidth": 1.5, "opacity": 1 if single else 0.4},
               x=x, y=y, color=color, tooltip=tooltip),
        _layer([p for p in (*held_out, *ends) if "low" in p],
               {"type": "rule", "clip": True, "strokeWidth": 2, "opacity": 0.5},
               x=x, y={"field": "low", "type": "quantitative"}, y2={"field": "high"}, color=color),
        _layer(held_out, {"type": "line", "clip": True, "strokeWidth": 2.5, "point": {"size": 40, "filled": True}},
               x=x, y=y, color=color, tooltip=tooltip),
        _layer(marks, {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.5}, x=x, color=color,
               tooltip=[_tip("x", "step", ","), _tip("event", "event"), _tip("reason", "reason")]),
        # Not cut off where it stands, at the edge of the picture.
        _layer(ends, {"type": "point", "shape": "diamond", "size": 120, "filled": True, "opacity": 1},
               x=x, y=y, color=color, tooltip=tooltip),
    ]
    said = "; ".join(_told(run, key) for run in runs)
    events = f" Events marked: {_counted(marks)}." if marks else " No event is marked."
    return Chart(name=name, title=title, alt=f"{title} over steps. {said}.{events}",
                 spec=_spec([layer for layer in layers if layer["data"]["values"]], 300))


def lines(
    runs: Sequence[RunRead], key: str, name: str, title: str, axis: str, *, log: bool = False, zero: bool = False
) -> Chart | None:
    """One number of training over steps, a line a run; None without any value."""
    values = [
        {"x": point["x"], "y": point["y"], "series": run.label}
        for run in runs for point in thinned(_points(run.train, key)) if not log or point["y"] > 0
    ]
    if not values:
        return None
    scale: dict[str, Any] = {"type": "log", "nice": False} if log else {"zero": zero}
    y = {"field": "y", "type": "quantitative", "title": axis, "scale": scale}
    if log:
        y["axis"] = {"tickCount": 5, "format": "~g"}
    color = _color([run.label for run in runs], legend=len(runs) > 1)
    layer = _layer(values, {"type": "line", "strokeWidth": 1.5}, x=_steps(), y=y, color=color,
                   tooltip=[_tip("x", "step", ","), _tip("y", axis, ".4~g"), _tip("series", "run")])
    said = "; ".join(_told(run, key) for run in runs)
    return Chart(name=name, title=title, alt=f"{title} over steps. {said}.", spec=_spec([layer], 220))


def by_layer(runs: Sequence[RunRead], measure: str, title: str, axis: str) -> list[Chart]:
    """``<layer>/<measure>`` over steps, a picture for each component and a line for each depth."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for key in dict.fromkeys(key for row in run.train for key in row if key.endswith(f"/{measure}")):
            layer = key[: -len(measure) - 1]
            match = LAYER.fullmatch(layer)
            component, depth = (match["component"], int(match["depth"])) if match else (layer, 0)
            found.setdefault(component, []).extend(
                {"x": point["x"], "y": point["y"], "depth": depth, "run": run.label}
                for point in thinned(_points(run.train, key))
            )
    charts = []
    for component, values in sorted(found.items()):
        if not values:
            continue
        positive = all(point["y"] > 0 for point in values)
        wide = positive and max(p["y"] for p in values) > 30 * min(p["y"] for p in values)
        scale: dict[str, Any] = {"type": "log", "nice": False} if wide else {"zero": False}
        y = {"field": "y", "type": "quantitative", "title": axis, "scale": scale}
        color = {"field": "depth", "type": "ordinal", "title": "depth", "legend": {"columns": 12}}
        encoded: dict[str, Any] = {"x": _steps(), "y": y, "color": color,
                                   "tooltip": [_tip("x", "step", ","), _tip("depth", "depth"), _tip("y", axis, ".4~g")]}
        if len(runs) > 1:
            encoded["strokeDash"] = {"field": "run", "type": "nominal", "title": None, "legend": {"columns": 1}}
        layer_spec = _layer(values, {"type": "line", "strokeWidth": 1.5}, **encoded)
        depths = sorted({point["depth"] for point in values})
        said = "; ".join(told for run in runs for depth in depths if (told := _ends(values, depth, run, runs)))
        name = re.sub(r"[^a-z0-9]+", "-", f"{measure} {component}".lower()).strip("-")
        charts.append(Chart(name=name, title=f"{title}: {component}", spec=_spec([layer_spec], 240),
                            alt=f"{title} of {component} over steps, a line for each depth. {said}."))
    return charts


def needles(runs: Sequence[RunRead]) -> list[Chart]:
    """What probes recalled, over steps and distances, and what suites did, over lengths and depths."""
    charts = []
    for run in runs:
        cells = []
        for row in run.probes:
            for key in row:
                monitor, slash, number = key.rpartition("/")
                recall, distance = finite(row, key), finite(row, f"{monitor}/distance")
                if slash and number == "recall" and recall is not None and distance is not None:
                    cells.append({"x": row["x"], "y": round(distance), "recall": recall})
        if cells:
            title = "Needles recalled" if len(runs) == 1 else f"Needles recalled: {run.label}"
            said = ", ".join(f"{cell['recall']:.0%} at step {cell['x']:,}" for cell in cells[-8:])
            charts.append(Chart(
                name=_file("needles", run, runs), title=title, spec=_map(cells, "step", "distance, tokens"),
                alt=f"Map of the share of needles recalled by step and by distance in tokens: {said}."))
        forms: dict[str, list[dict[str, Any]]] = {}
        for row in run.needle_maps:
            for number, value in enumerate(row["by_depth"]):
                depth = f"{(number + 0.5) / len(row['by_depth']):.0%}"
                forms.setdefault(str(row["form"]), []).append({"x": row["length"], "y": depth, "recall": value})
        for form, cells in forms.items():
            said = ", ".join(f"{c['recall']:.0%} at {c['x']:,} tokens, depth {c['y']}" for c in cells)
            charts.append(Chart(
                name=_file(re.sub(r"\W+", "-", f"needles-{form}".lower()), run, runs),
                title=f"Needle map: {form}" + ("" if len(runs) == 1 else f", {run.label}"),
                spec=_map(cells, "length, tokens", "depth"), alt=f"Map of recall by length and depth: {said}."))
    return charts


def shares(rows: Sequence[dict[str, Any]], key: str, name: str, title: str, unit: str) -> Chart | None:
    """Bars of ``rows`` with ``component`` and ``key``, largest first, with their shares."""
    whole = sum(row[key] for row in rows)
    if not whole:
        return None
    values = [{"component": row["component"], "share": row[key] / whole, "value": row[key],
               "text": f"{row[key] / whole:.1%}"} for row in rows]
    y = {"field": "component", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 130}}
    x = {"field": "share", "type": "quantitative", "title": f"share of {unit}",
         "scale": {"domain": [0, 1.1 * max(v["share"] for v in values)]}, "axis": {"format": ".0%", "tickCount": 5}}
    tooltip = [_tip("component", "component"), _tip("text", "share"), _tip("value", unit, ",.4~g")]
    bars = _layer(values, {"type": "bar", "cornerRadius": 2}, x=x, y=y, tooltip=tooltip)
    text = _layer(values, {"type": "text", "align": "left", "dx": 4}, x=x, y=y, text={"field": "text"})
    said = ", ".join(f"{v['component']} {v['text']}" for v in values)
    return Chart(name=name, title=title, alt=f"{title}: {said}.", spec=_spec([bars, text], 30 * len(values) + 10))


def all_charts(runs: Sequence[RunRead]) -> dict[str, list[Chart]]:
    """Section of the report → its pictures."""
    def there(*charts: Chart | None) -> list[Chart]:
        return [chart for chart in charts if chart is not None]

    parts: list[Chart | None] = []
    for run in runs:
        who = "" if len(runs) == 1 else f": {run.label}"
        made = run.made
        weights = made.get("parameters", [])
        # A report of an earlier version has no bytes.
        unit, title = ("bytes", "Size of weights") if all("bytes" in row for row in weights) else (
            "parameters", "Parameters")
        parts.append(shares(weights, unit, _file("parameters", run, runs), f"{title} by component{who}", unit))
        times = made.get("times", {})
        parts.append(shares(times.get("rows", []), "seconds", _file("time", run, runs),
                            f"Time by component, forward pass of {times.get('tokens', 0):,} tokens{who}",
                            "seconds"))
    tasks = {run.on_task for run in runs}
    mixed = len(tasks) > 1
    unit = f"{bits_unit(False)}, of a task per token" if mixed else bits_unit(True in tasks)
    counted = "tokens per second, of a task counted ones" if mixed else \
        "counted tokens per second" if True in tasks else "tokens per second"
    return {
        "curves": there(
            curves(runs, "bits_per_byte", "bits-per-byte", unit.capitalize(), unit),
            curves(runs, "loss", "loss", "Loss", "nats per token"),
        ),
        "gradients": there(
            lines(runs, "gradient_norm", "gradient-norm", "Gradient norm before clipping", "2-norm", log=True),
            lines(runs, "learning_rate", "learning-rate", "Learning rate", "learning rate", zero=True),
        ),
        "layers": [
            *by_layer(runs, "decay", "Decay Γ", "nats per token"),
            *by_layer(runs, "energy", "Memory energy", "energy"),
        ],
        "needles": needles(runs),
        "throughput": there(
            lines(runs, "tokens_per_second", "throughput", "Throughput", counted, zero=True)
        ),
        "components": there(*parts),
    }


def _ended(run: RunRead) -> list[dict[str, Any]]:
    """The evaluation at the end, which no curve is led to: it reads more text than those in training
    (``evaluate.final_tokens``). None where the run has gone on since, or was evaluated on test text."""
    end = run.summary
    if end.get("held_out_split") != "validation" or end.get("steps") != run.progress[0] or not run.steps:
        return []
    low, high = end["held_out_interval"] or (None, None)
    return [{
        "x": run.steps, "loss": end["held_out_loss"], "bits_per_byte": end["held_out_bits_per_byte"],
        "bits_per_byte_low": low, "bits_per_byte_high": high,
    }]


def _points(rows: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        value = finite(row, key)
        if value is None:
            continue
        low, high = finite(row, f"{key}_low"), finite(row, f"{key}_high")
        more = {} if low is None or high is None else {"low": low, "high": high}
        found.append({"x": row["x"], "y": value, "more": more})
    return found


def _marks(run: RunRead, single: bool) -> list[dict[str, Any]]:
    return [
        {"x": event["x"], "series": event["event"] if single else run.label,
         "event": event["event"] if single else f"{event['event']} in {run.label}",
         "reason": str(event.get("reason", ""))[:200]}
        for event in run.events if "x" in event and event["event"] not in SILENT
    ][-MOST_MARKS:]


def _after_beginning(points: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Of a run those after the first steps, which lie far above."""
    end = max((point["x"] for point in points), default=0)
    return [point for point in points if point["x"] > BEGINNING * end] or points


def _range(after: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Of the values, with a margin."""
    low = min(min(point["y"], point.get("low", point["y"])) for point in after)
    high = max(max(point["y"], point.get("high", point["y"])) for point in after)
    margin = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    return low - margin, high + margin


def _told(run: RunRead, key: str) -> str:
    """The first and the last number of a run, in words."""
    parts = []
    for what, rows in (("training", run.train), ("held out", run.evaluations), (AT_THE_END, _ended(run))):
        points = _points(rows, key)
        if points:
            told = [f"{point['y']:.4g} at step {point['x']:,}" for point in (points[0], *points[1:][-1:])]
            parts.append(f"{what} {' and '.join(told)}")
    return f"{run.label}: " + (", ".join(parts) or "no number")


def _ends(values: Sequence[dict[str, Any]], depth: int, run: RunRead, runs: Sequence[RunRead]) -> str:
    """The first and the last value of a run's layer, in words; nothing where it has none."""
    own = [point for point in values if point["depth"] == depth and point["run"] == run.label]
    who = "" if len(runs) == 1 else f"{run.label}, "
    return f"{who}depth {depth}: {own[0]['y']:.3g} to {own[-1]['y']:.3g}" if own else ""


def _counted(marks: Sequence[dict[str, Any]]) -> str:
    names = [mark["event"] for mark in marks]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def _file(name: str, run: RunRead, runs: Sequence[RunRead]) -> str:
    return name if len(runs) == 1 else f"{name}-{runs.index(run) + 1}"


def _steps() -> dict[str, Any]:
    return {"field": "x", "type": "quantitative", "title": "step", "scale": {"nice": False},
            "axis": {"format": "~s", "tickCount": 8}}


def _color(names: list[str], *, legend: bool = True) -> dict[str, Any]:
    columns = max(1, NARROW // (7 * max(map(len, names)) + 30))  # pixels of a letter, and of the mark before a name
    shown = {"columns": min(columns, 4), "labelLimit": 320} if legend else None
    return {"field": "series", "type": "nominal", "title": None, "scale": {"domain": names}, "legend": shown}


def _tip(field: str, title: str, shape: str = "") -> dict[str, Any]:
    numeric: dict[str, Any] = {"type": "quantitative", "format": shape} if shape else {"type": "nominal"}
    return {"field": field, "title": title} | numeric


def _layer(values: list[dict[str, Any]], mark: dict[str, Any], **encoding: Any) -> dict[str, Any]:
    return {"data": {"values": values}, "mark": mark, "encoding": encoding}


def _map(cells: list[dict[str, Any]], across: str, down: str) -> dict[str, Any]:
    """A heat map of ``recall`` with the value in each cell."""
    place = {
        "x": {"field": "x", "type": "ordinal", "title": across, "axis": {"labelAngle": 0, "labelOverlap": True}},
        "y": {"field": "y", "type": "ordinal", "title": down},
    }
    color = {"field": "recall", "type": "quantitative", "title": "recall", "scale": {"domain": [0, 1]},
             "legend": {"format": ".0%", "gradientLength": 160, "direction": "horizontal"}}
    tooltip = [_tip("x", across), _tip("y", down), _tip("recall", "recall", ".1%")]
    boxes = _layer(cells, {"type": "rect"}, **place, color=color, tooltip=tooltip)
    said = _layer(cells if len(cells) <= 60 else [], {"type": "text", "fontWeight": "bold"}, **place,
                  text={"field": "recall", "type": "quantitative", "format": ".0%"},
                  color={"condition": {"test": "datum.recall > 0.5", "value": "#000"}, "value": "#fff"})
    rows = len({cell["y"] for cell in cells})
    return _spec([boxes, said] if said["data"]["values"] else [boxes], max(34 * rows, 50))


def _spec(layers: list[dict[str, Any]], height: int) -> dict[str, Any]:
    return {"$schema": SCHEMA, "width": "container", "height": height,
            "autosize": {"type": "fit-x", "contains": "padding"}, "layer": _plain(layers)}


def _plain(value: Any) -> Any:
    """The value with every text in it as pictures can show it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return plain(value) if isinstance(value, str) else value


def theme(*, dark: bool) -> dict[str, Any]:
    """The Vega-Lite configuration of a light or dark page; colours that people with any colour vision tell apart
    (Okabe and Ito, https://jfly.uni-koeln.de/color/)."""
    ink, faint = ("#d7dae0", "#3b4048") if dark else ("#30343b", "#dfe2e7")
    light_colors = ["#0072b2", "#d55e00", "#009e73", "#a8478a", "#8a6d00", "#5b5b5b"]
    dark_colors = ["#56b4e9", "#e69f00", "#2fc496", "#d98bb9", "#f0e442", "#b0b0b0"]
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": faint, "domainColor": faint, "tickColor": faint,
            "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelFlush": False}
    return {
        "background": "transparent" if dark else "white",
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": axis,
        "legend": {"labelColor": ink, "titleColor": ink, "orient": "top", "labelFontSize": 12, "titleFontSize": 12,
                   "titleFontWeight": "normal", "symbolType": "stroke", "symbolStrokeWidth": 3,
                   "symbolOpacity": 1},
        "text": {"color": ink, "fontSize": 12},
        "bar": {"color": (dark_colors if dark else light_colors)[0]},
        "range": {
            "category": dark_colors if dark else light_colors,
            "ordinal": {"scheme": "viridis", "extent": [0.3, 1.0] if dark else [0.0, 0.85]},
            "heatmap": {"scheme": "viridis"},
            "ramp": {"scheme": "viridis"},
        },
    }
