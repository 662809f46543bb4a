"""Compress finished runs by several methods and print bytes, perplexity, speed of generation and drift of each.

    for s in 0 1 2; do muse-run recipes/experiments/phase2_10m_scale1.toml --set seed=$s --run-dir runs/c$s; done
    python recipes/experiments/compression.py runs/c0 runs/c1 runs/c2 --work runs/compressed

Perplexity is that of the held-out text of the runs' recipe, over the runs; speed and drift are those of the first.
Speed is that of greedy generation by recorded steps, as muse generate draws: the median of turns that alternate between
the run and its compressed form, so that both meet the same machine. Drift is the mean distance W₁ of spectral measures
on validation text (docs/mathematics.md). On a GPU the kernels of a token and the time that they run stand beside.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from muse_koopman.compress import Compress
from muse_koopman.distil import held_out_drift
from muse_koopman.maps import replace
from muse_koopman.options import CompressOptions

from muse_core.model.generation import Stream
from muse_core.recipe import read_recipe
from muse_core.training.compression import weight_bytes
from muse_core.training.setup import set_up
from muse_core.training.trained import open_trained

METHODS = {
    "koopman-2": ["--method", "koopman", "--ratio", "2"],
    "whitened-2": ["--method", "whitened", "--ratio", "2"],
    "svd-2": ["--method", "svd", "--ratio", "2"],
    "magnitude-2": ["--method", "magnitude", "--ratio", "2"],
    "koopman-1.3": ["--method", "koopman", "--ratio", "1.3"],
    "whitened-1.3": ["--method", "whitened", "--ratio", "1.3"],
    "int8": ["--method", "int8"],
    "int4": ["--method", "int4"],
    "whitened-3.8": ["--method", "whitened", "--ratio", "3.8"],
    "magnitude-3.8": ["--method", "magnitude", "--ratio", "3.8"],
    "koopman+int8": ["--method", "koopman", "--ratio", "6.5", "--quantize", "int8"],
    "whitened+int8": ["--method", "whitened", "--ratio", "6.5", "--quantize", "int8"],
    "whitened+int4": ["--method", "whitened", "--ratio", "10", "--quantize", "int4"],
}
"""Name → arguments of muse compress. int8 and int4 give about 3.8 and 6.8."""
RATIOS = (1.1, 1.3, 1.6, 2.0, 3.0, 4.0)
"""At which the drift of the fitted maps alone is measured."""
TOKENS, WARM = 64, 96
"""Tokens of a turn, and those before the first: the steps are recorded among them."""
LEAST_SECONDS = 45
"""With less than that left no compression is begun."""
ROWS = 64
"""That are drawn together on a GPU, beside one."""


def compressed(run: Path, name: str, given: argparse.Namespace, gpus: Queue) -> tuple[str, Path, Path | None]:
    """One ``muse compress``; None in place of the new run when it fails or comes too late, with its log beside."""
    folder = given.work / f"{run.name}-{name}"
    gpu = gpus.get()
    own = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    program = [sys.executable, "-c", "from muse_core.cli import muse; muse()"]
    arguments = ["compress", str(run), *METHODS[name], "--steps", str(given.steps), "--output", str(folder),
                 "--no-report", *(f"--set={one}" for one in given.overrides)]
    began, code = time.monotonic(), None
    left = given.seconds - (began - given.began)
    if left > LEAST_SECONDS:
        with open(given.work / f"{folder.name}.log", "w") as log:
            try:
                code = subprocess.run(
                    [*program, *arguments], stdout=log, stderr=log, env=os.environ | own, timeout=left
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
    gpus.put(gpu)
    print(f"{folder.name}: {time.monotonic() - began:.0f} s, exit code {code}", file=sys.stderr, flush=True)
    return name, run, folder if code == 0 else None


def drawn(setup: Any, rows: int) -> Iterator[None]:
    """Greedy tokens of ``rows`` rows of one text, by recorded steps, as ``muse generate`` draws them."""
    prompt = [int(token) for token in setup.corpus.tokenizer.encode("The state of the Union ")]
    stream = Stream(
        setup.model, stream_period=setup.stream_period, device=setup.precision.device, precision=setup.precision
    )
    scores = stream.prefill(torch.tensor([prompt] * rows))
    while True:
        yield
        scores = stream.read(scores.argmax(-1, keepdim=True))[:, -1]


def speeds(setups: list[Any], rows: int, turns: int) -> list[float]:
    """Tokens a second of opened runs, all rows together: medians of turns that alternate, after ``WARM`` tokens."""
    texts = [drawn(setup, rows) for setup in setups]
    for text in texts:
        for _ in islice(text, WARM):
            pass
    found: list[list[float]] = [[] for _ in setups]
    for turn in range(turns):
        for which in sorted(range(len(texts)), reverse=turn % 2 == 1):
            began = time.perf_counter()  # the scores of each token come to the host, so that nothing runs on
            for _ in islice(texts[which], TOKENS):
                pass
            found[which].append(rows * TOKENS / (time.perf_counter() - began))
    return [statistics.median(one) for one in found]


def profiled(setup: Any, rows: int) -> str:
    """Of one token on a GPU, by torch's profiler: kernels, and the microseconds that they run."""
    text = drawn(setup, rows)
    for _ in islice(text, WARM):
        pass
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in islice(text, TOKENS):
            pass
        torch.cuda.synchronize()
    kernels = [one for one in profile.events() if one.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(one.time_range.elapsed_us() for one in kernels)
    return f"{len(kernels) / TOKENS:.0f} kernels, {busy / TOKENS:.0f} µs"


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def controls(run: Path) -> None:
    """The drift of a run against itself, against an untrained model, and against its own maps at several ratios."""
    teacher, _ = open_trained(run)
    checked = read_recipe(run / "recipe.toml", ["seed=991", f'data.tokenizer={{use="run",from="{run.resolve()}"}}'])
    other = set_up(checked.recipe, checked.registry)
    print(f"drift of {run.name}: itself {held_out_drift(other, teacher.model, teacher.model):.4f}, "
          f"untrained {held_out_drift(other, other.model, teacher.model):.4f}")
    for method in ("koopman", "whitened", "svd"):
        row = []
        for ratio in RATIOS:
            other.model.load_state_dict(teacher.model.state_dict())
            forms, how = Compress(CompressOptions(method=method, ratio=ratio), other).made()
            before = {form.name: other.model.get_submodule(form.name) for form in forms if form.module is not None}
            for form in forms:
                if form.module is not None:
                    replace(other.model, form.name, form.module)
            perplexity = other.evaluate("validation", 65_536).perplexity
            moved = held_out_drift(other, other.model, teacher.model)
            row.append(f"{ratio:g}: ε {how['epsilon']:.3f} drift {moved:.4f} perplexity {perplexity:.3f}")
            for name, module in before.items():
                replace(other.model, name, module)
        print(f"  {method}, not distilled: {'; '.join(row)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--slots", type=int, default=1, help="Compressions at once on each GPU.")
    parser.add_argument("--gpus", default="", help="Numbers apart by commas.")
    parser.add_argument("--seconds", type=float, default=1e6, help="In which all compressions must be done.")
    parser.add_argument("--turns", type=int, default=5, help="Of generation; 0 measures no speed.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="As of muse compress.")
    parser.add_argument("--controls", action="store_true", help="Measure how drift responds, and nothing else.")
    given = parser.parse_args()
    given.began = time.monotonic()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.controls:
        controls(given.runs[0])
        return
    gpus: Queue = Queue()
    for gpu in given.gpus.split(",") * given.slots:
        gpus.put(gpu)
    jobs = [(run, name) for name in given.methods.split(",") for run in given.runs]
    with ThreadPoolExecutor(gpus.qsize()) as pool:
        done = list(pool.map(lambda job: compressed(*job, given, gpus), jobs))
    whole = [summary(run)["held_out_perplexity"] for run in given.runs]
    print("| method | bytes | smaller | perplexity, mean and each |")
    print(f"| none | {weight_bytes(given.runs[0]):,} | 1 | {told(whole)} |")
    finished: dict[str, list[tuple[Path, Path]]] = {}
    for name in given.methods.split(","):
        rows = [(run, folder) for other, run, folder in done if other == name and folder is not None]
        if not rows:
            print(f"| {name} | failed |")
            continue
        finished[name] = rows
        sizes = [weight_bytes(folder) for _, folder in rows]
        ratio = weight_bytes(rows[0][0]) / statistics.mean(sizes)
        after = [summary(folder)["held_out_perplexity"] for _, folder in rows]
        worse = statistics.mean(new / summary(run)["held_out_perplexity"] - 1 for new, (run, _) in zip(after, rows))
        print(f"| {name} | {statistics.mean(sizes):,.0f} | {ratio:.2f} | {worse:+.1%}: {told(after)} |", flush=True)
    devices = [("cuda", 1), ("cuda", ROWS), ("cpu", 1)] if torch.cuda.is_available() else [("cpu", 1)]
    names = " | ".join(f"tokens/s on {device}, {rows} row{'s' * (rows > 1)}" for device, rows in devices)
    print(f"| method | drift | {names} | a token of 1 row on cuda |")
    for name, rows in finished.items():
        print(f"| {name} | {' | '.join(moved_and_fast(*rows[0], devices, given.turns))} |", flush=True)


def moved_and_fast(run: Path, folder: Path, devices: list[tuple[str, int]], turns: int) -> list[str]:
    """The drift of a compressed run, for each device and number of rows its speed beside that of the run that it was
    made of, and the profiles of both where there is a GPU."""
    row, profiles = [], "not measured"
    for device, rows in devices:
        setups = [open_trained(one, device=device)[0] for one in (run, folder)]
        if not row:
            row.append(f"{held_out_drift(setups[1], setups[1].model, setups[0].model):.4f}")
        if turns:
            old, new = speeds(setups, rows, turns)
            row.append(f"{new:.0f} of {old:.0f} ({new / old:.2f})")
        if turns and device == "cuda" and rows == 1:
            profiles = " of ".join(profiled(setup, rows) for setup in reversed(setups))
    return [*row, profiles]


def told(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
