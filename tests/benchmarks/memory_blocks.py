"""What the memory of a `mag` block costs on a GPU: ``python tests/benchmarks/memory_blocks.py [step] [memory] [draw]``.

step: forward and backward of the block at 4,096 tokens by memory, medians of rounds in turn. memory: what a step of one
long row allocates at its peak, by length and ``recompute`` of the deep memory. draw: bytes of state and milliseconds
of a token that is read after contexts of 1,024 tokens and more. Blocks are untrained; bfloat16 under autocast. Prints
one table each. On a CPU, smaller numbers show that it runs: ``--small``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from muse_core.contracts import Tokens
from muse_core.model.precision import Precision
from muse_core.testing.building import build_component
from muse_core.testing.sequences import leaves

HEADS, WINDOW = 6, 128
MEMORIES: dict[str, dict[str, Any]] = {
    "fast-weights (delta rule)": {"use": "fast-weights", "heads": HEADS, "taps": "uniform", "gate": False},
    "qk-projection": {"use": "qk-projection", "heads": HEADS},
    "atlas, chunk 16": {"use": "atlas", "heads": HEADS, "gate": False},
    "atlas, chunk 64": {"use": "atlas", "heads": HEADS, "gate": False, "chunk": 64},
}


class Block:
    """`mag` with one memory, and its inputs."""

    def __init__(self, memory: dict[str, Any], device: torch.device, width: int):
        self.device, self.width = device, width
        self.precision = Precision(device=device, autocast=True)
        options = {"heads": HEADS, "window": WINDOW, "memory": memory}
        built = build_component("layer", "mag", options, width=width, dtype="bfloat16", device=str(device))
        self.layer = built.to(device)
        self.parameters = sum(parameter.numel() for parameter in self.layer.parameters())

    def inputs(self, rows: int, length: int) -> torch.Tensor:
        """(rows, length, width), the same in every process."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(rows, length, self.width, generator=generator).to(self.device, torch.bfloat16)

    def read(self, x: torch.Tensor, state: Any = None, done: int = 0) -> Any:
        positions = torch.arange(done, done + x.shape[1], device=self.device).expand(x.shape[:2])
        with self.precision():
            return self.layer(x, state, {}, Tokens(positions, offset=done))

    def step(self, x: torch.Tensor) -> tuple[float, float]:
        """Milliseconds of a forward and backward pass, and GB that it allocated at its peak (on a CPU not known)."""
        self.layer.zero_grad()
        cuda = self.device.type == "cuda"
        held = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        x = x.detach().requires_grad_()
        self.settle()
        started = time.perf_counter()
        self.read(x).update.float().square().mean().backward()
        self.settle()
        taken = (time.perf_counter() - started) * 1e3
        return taken, (torch.cuda.max_memory_allocated() - held) / 1e9 if cuda else float("nan")

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def steps(device: torch.device, small: bool) -> Iterator[str]:
    """Rows of the table of training steps."""
    rows, length, width, rounds = (1, 256, 48, 2) if small else (8, 4096, 384, 15)
    yield f"B {rows}, N {length}, D {width}, {HEADS} heads, window {WINDOW}\n"
    yield "| memory | parameters | ms a step | over the delta rule | peak GB |\n|---|---|---|---|---|"
    blocks = {name: Block(memory, device, width) for name, memory in MEMORIES.items()}
    taken: dict[str, list[float]] = {name: [] for name in blocks}
    peaks = {}
    for number in range(rounds + 2):
        for name, block in blocks.items():
            x = block.inputs(rows, length)
            milliseconds, peaks[name] = block.step(x)
            if number > 1:
                taken[name].append(milliseconds)
    first = statistics.median(taken[next(iter(taken))])
    for name, found in taken.items():
        size, middle = blocks[name].parameters, statistics.median(found)
        yield f"| {name} | {size:,} | {middle:.2f} | {middle / first:.2f} | {peaks[name]:.2f} |"


def memory(device: torch.device, small: bool) -> Iterator[str]:
    """Rows of the table of one long row."""
    lengths, width = ((256, 512), 48) if small else ((16_384, 65_536), 384)
    yield f"one row, D {width}, {HEADS} heads, window {WINDOW}; peak GB of a step\n"
    yield "| memory | recompute | " + " | ".join(f"N {length:,}" for length in lengths) + " | ms at the longest |"
    yield "|---|---|" + "---|" * len(lengths) + "---|"
    for name, options in MEMORIES.items():
        for recompute in (1, 8, 32) if options["use"] == "atlas" else (None,):
            more = {} if recompute is None else {"recompute": recompute}
            block = Block(options | more, device, width)
            row, milliseconds = [], float("nan")
            for length in lengths:
                x = block.inputs(1, length)
                try:
                    block.step(x)
                    milliseconds, peak = block.step(x)
                    row.append(f"{peak:.3f}")
                except torch.OutOfMemoryError:
                    row.append("out of memory")
                    torch.cuda.empty_cache()
            yield f"| {name} | {recompute or ''} | " + " | ".join(row) + f" | {milliseconds:.1f} |"


@torch.no_grad()
def draw(device: torch.device, small: bool) -> Iterator[str]:
    """Rows of the table of single tokens after a context."""
    lengths, width, rounds, tokens = ((64, 256), 48, 2, 4) if small else ((1024, 4096, 16_384, 65_536), 384, 9, 64)
    yield f"one row, D {width}, {HEADS} heads, window {WINDOW}; ms a token, medians of {rounds} times {tokens} tokens\n"
    yield "| memory | " + " | ".join(f"{length:,}" for length in lengths) + " | bytes of state at each |"
    yield "|---|" + "---|" * len(lengths) + "---|"
    for name, options in MEMORIES.items():
        block = Block(options, device, width)
        x = block.inputs(1, max(lengths))
        states, state, piece = {}, None, min(lengths)
        for done in range(0, max(lengths), piece):
            state = block.read(x[:, done : done + piece], state, done).state
            if done + piece in lengths:
                states[done + piece] = state
        taken: dict[int, list[float]] = {length: [] for length in lengths}
        for number in range(rounds + 1):
            for length in lengths if number % 2 else reversed(lengths):
                state = states[length]
                block.settle()
                started = time.perf_counter()
                for done in range(length, length + tokens):
                    state = block.read(x[:, :1], state, done).state
                block.settle()
                if number:
                    taken[length].append((time.perf_counter() - started) * 1e3 / tokens)
        sizes = [sum(leaf.numel() * leaf.element_size() for leaf in leaves(states[n]).values()) for n in lengths]
        said = ", ".join(f"{size:,}" for size in dict.fromkeys(sizes))
        yield f"| {name} | " + " | ".join(f"{statistics.median(taken[n]):.3f}" for n in lengths) + f" | {said} |"


TABLES = {"step": steps, "memory": memory, "draw": draw}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="among step, memory and draw; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{card}, torch {torch.__version__}")
    for name in given.tables or TABLES:
        print(f"\n{name}: ", end="")
        for line in TABLES[name](device, given.small):
            print(line, flush=True)


if __name__ == "__main__":
    main()
