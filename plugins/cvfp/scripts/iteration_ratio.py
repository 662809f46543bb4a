"""How much faster one parallel iteration is than the recurrence token by token, with the same weights in one process.

    python plugins/cvfp/scripts/iteration_ratio.py --tokens 6400 --width 768 --device cpu

Prints the median seconds of either form, their ratio, and the largest difference of their contexts once the parallel
form has settled. Nothing is trained; token ids are random. ``--sequential-tokens`` times the recurrence on a part of
the tokens only, and multiplies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from muse_cvfp.model import Cvfp
from muse_cvfp.options import CvfpOptions
from muse_cvfp.stream import Stream, sequential, settle, sweep

from muse_core.building import ModelContext
from muse_core.testing.building import bound_kernels


def timed(work: Callable[[], torch.Tensor], device: str, repeats: int) -> float:
    """Median seconds, after one call that does not count."""
    seconds = []
    for repeat in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat or repeats == 0:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=6400)
    parser.add_argument("--sequential-tokens", type=int)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and contexts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=int, default=1000, help="sweeps at most")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    context = ModelContext(
        vocabulary_size=1024, sequence_length=256, width=given.width, depth=given.depth, seed=0,
        kernels=bound_kernels("float32"),
    )
    model = Cvfp(CvfpOptions(width=given.width, depth=given.depth), context)
    model = model.to(given.device, getattr(torch, given.dtype)).eval()
    resets = torch.zeros(given.tokens, dtype=torch.bool)
    resets[0] = True
    ids = torch.randint(1024, (given.tokens,))
    stream = Stream(ids, ids, resets).to(given.device)
    part = min(given.tokens, given.sequential_tokens or given.tokens)
    short = Stream(ids[:part], ids[:part], resets[:part]).to(given.device)
    slow = timed(lambda: sequential(model, short), given.device, min(given.repeats, 2)) * given.tokens / part
    start = torch.zeros(given.tokens, given.width, device=given.device, dtype=model.start.dtype)
    fast = timed(lambda: sweep(model, stream, start), given.device, given.repeats)
    exact = sequential(model, short)
    settled = settle(model, short, torch.zeros_like(exact), tolerance=1e-6, most=given.most)
    print(json.dumps({
        "device": torch.cuda.get_device_name() if given.device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__, "dtype": given.dtype,
        "tokens": given.tokens, "width": given.width, "depth": given.depth,
        "sequential_seconds": round(slow, 4), "parallel_seconds": round(fast, 6), "ratio": round(slow / fast, 1),
        "sequential_timed_on": part, "sweeps": len(settled.changes), "contraction": round(settled.contraction, 4),
        "largest_difference": float(f"{(settled.contexts - exact).abs().max().item():.3g}"),
    }))


if __name__ == "__main__":
    main()
