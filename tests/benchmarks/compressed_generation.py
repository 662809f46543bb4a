"""How fast text is drawn from models of several sizes, whole and compressed: at which size compression pays.

    python tests/benchmarks/compressed_generation.py --device cuda

The models have their first weights, since speed does not depend on the values: phase2_10m of the recipes, and wider and
deeper ones of its kind, over bytes. Their linear maps are replaced as muse compress replaces them: ``int8``,
``half`` (factors of half the entries) and ``half+int8`` (those in int8). A token is drawn greedily by recorded steps;
on a GPU a second figure is that of the recorded step alone, of which the rest is copies and the host. Medians of turns
that alternate. With --profile also the kernels of a step, by the time that they take.
"""

from __future__ import annotations

import argparse
import collections
import math
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muse_core.building import build_model
from muse_core.model.generation import Stream
from muse_core.model.plan import periods
from muse_core.model.precision import choose_precision
from muse_core.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes" / "experiments"
FORMS = ("whole", "int8", "half", "half+int8")
SIZES = ("384x4", "1024x12", "2048x12")
LEAST = 64
"""Rows and columns of a map that is replaced, as in muse compress."""
BEGAN = time.perf_counter()
WARM, TOKENS, REPLAYS = 40, 48, 50


def models_of(
    size: str, forms: list[str], device: torch.device, precision: Any
) -> tuple[list[nn.Module], int, dict[str, Any]]:
    """Fresh models of ``WIDTHxDEPTH`` in these forms, the entries of their maps when whole, and how they are read."""
    width, depth = map(int, size.split("x"))
    changed = [f"model.width={width}", f"model.depth={depth}"]
    if width != 384:
        changed.append(
            f'model.block=[{{use="resolvent",heads={width // 4},potential=["non-hermitian"]}},'
            f'{{use="fast-weights",rule="delta",heads={width // 64}}},{{use="feed-forward"}}]'
        )

    def built(changed: list[str]) -> tuple[nn.Module, Any]:
        checked = read_recipe(RECIPES / "phase2_10m.toml", changed)
        model, _ = build_model(
            checked.recipe, checked.registry, vocabulary_size=257, device=device, dtype=precision.dtype
        )
        return model.to(device).eval(), checked.recipe.model.options

    whole, options = built(changed)
    shapes = {
        name: module.weight.shape
        for name, module in whole.named_modules()
        if type(module) is nn.Linear and min(module.weight.shape) >= LEAST
    }
    models = [whole if form == "whole" else built([*changed, *in_form(form, shapes)])[0] for form in forms]
    reading = {"stream_period": math.lcm(1, *periods(options)), "device": device, "precision": precision}
    return models, sum(shape.numel() for shape in shapes.values()), reading


def in_form(form: str, shapes: dict[str, torch.Size]) -> list[str]:
    """What a recipe says of maps that are stored in this form."""
    maps = []
    for name, (rows, columns) in shapes.items():
        rank = f", rank={rows * columns // (2 * (rows + columns)) // 16 * 16}" if form.startswith("half") else ""
        store = "int8" if form.endswith("int8") else "fp32"
        maps.append(f'{{module="{name}", store="{store}"{rank}}}')
    return ['model.use="compressed"', f"model.map=[{', '.join(maps)}]"]


class Text:
    """Rows of one text that is drawn greedily."""

    def __init__(self, model: nn.Module, reading: dict[str, Any], rows: int):
        self.stream, self.rows = Stream(model, **reading), rows
        self.tokens = self._drawn(rows)
        for _ in islice(self.tokens, WARM):
            pass

    def _drawn(self, rows: int):
        scores = self.stream.prefill(torch.arange(8).repeat(rows, 1))
        while True:
            yield
            scores = self.stream.read(scores.argmax(-1, keepdim=True))[:, -1]

    def speed(self) -> float:
        """Tokens a second, all rows together."""
        began = time.perf_counter()  # the scores of each token come to the host, so that nothing runs on
        for _ in islice(self.tokens, TOKENS):
            pass
        return self.rows * TOKENS / (time.perf_counter() - began)

    def step(self) -> float | None:
        """Microseconds of the recorded step alone on a GPU."""
        graphs = [kept.graph for kept in self.stream.replays.kept.values() if hasattr(kept, "graph")]
        if not graphs:
            return None
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
        for end in ends:
            end.record()
            graphs[0].replay()
        torch.cuda.synchronize()
        return 1e3 * statistics.median(a.elapsed_time(b) for a, b in zip(ends, ends[1:]))

    def kernels(self) -> str:
        """Of a token by torch's profiler: how many, their time together, and the longest."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in islice(self.tokens, 8):
                pass
            torch.cuda.synchronize()
        found: dict[str, list[float]] = collections.defaultdict(list)
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                found[event.name[:60]].append(event.time_range.elapsed_us())
        whole = sum(map(sum, found.values()))
        longest = sorted(found.items(), key=lambda one: -sum(one[1]))[:14]
        lines = [f"    {sum(times) / 8:8.1f} µs  {len(times) / 8:6.1f} ×  {name}" for name, times in longest]
        return "\n".join([f"  {sum(map(len, found.values())) / 8:.0f} kernels, {whole / 8:.0f} µs", *lines])


def prepared(
    sizes: list[str], forms: list[str], rows: list[int], device: torch.device
) -> Iterator[tuple[str, int, int, list[Text]]]:
    """Of each size and number of rows the entries of the maps, and the texts of all forms with their steps recorded."""
    precision = choose_precision(device, "bf16")
    for size in sizes:
        models, maps, reading = models_of(size, forms, device, precision)
        for number in rows:
            yield size, maps, number, [Text(one, reading, number) for one in models]
            log(f"{size}, {number} rows: recorded")


def log(line: str) -> None:
    print(f"{time.perf_counter() - BEGAN:.0f} s {line}", file=sys.stderr, flush=True)


def measure(size: str, maps: int, rows: int, forms: list[str], texts: list[Text], turns: int) -> None:
    """Print a line of the table for each form."""
    drawn: list[list[float]] = [[] for _ in texts]
    for turn in range(turns):
        for which in sorted(range(len(texts)), reverse=turn % 2 == 1):
            drawn[which].append(texts[which].speed())
    steps = [text.step() for text in texts]
    speeds = [statistics.median(one) for one in drawn]
    for form, speed, step in zip(forms, speeds, steps):
        alone = "| | |" if step is None or steps[0] is None else f"| {step:.0f} | {steps[0] / step:.2f} |"
        line = f"| {size} | {maps / 1e6:.1f} M | {rows} | {form} | {speed:,.0f} | {speed / speeds[0]:.2f} "
        print(line + alone, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="WIDTHxDEPTH, apart by commas.")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--rows", default="1,64")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", default="", help="WIDTHxDEPTH whose kernels are counted at last, on a GPU.")
    parser.add_argument("--wait-for", type=Path, help="Measure when this file is there; everything is prepared before.")
    given = parser.parse_args()
    device, forms = torch.device(given.device), given.forms.split(",")
    rows = [int(one) for one in given.rows.split(",")]
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device), torch.__version__)
    all_texts = list(prepared(given.sizes.split(","), forms, rows, device))
    while given.wait_for is not None and not given.wait_for.exists():
        time.sleep(0.2)
    log("measured from here on")
    print("| model | maps | rows | form | tokens/s | × whole | recorded step, µs | × whole |")
    for size, maps, number, texts in sorted(all_texts, key=lambda one: one[2]):
        measure(size, maps, number, forms, texts, given.turns)
    log("measured")
    for size, _, number, texts in all_texts if device.type == "cuda" else []:
        for form, text in zip(forms, texts):
            if size == given.profile:
                print(f"{size}, {number} rows, {form}:\n{text.kernels()}", flush=True)


if __name__ == "__main__":
    main()
