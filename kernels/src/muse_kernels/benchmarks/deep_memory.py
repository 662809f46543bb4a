"""Deep memory as a layer, forward and backward, beside titans-pytorch's NeuralMemory in the same run.

B 8, N 4096, D 512, 8 heads of 64, hidden width 128, bfloat16: both project a normalised input to queries, keys, values
and gates, learn by chunks and project back. titans-pytorch takes every gradient at the weights of the sequence's start,
unless its `batch_size` is the chunk; its memory has our shapes and a layer norm. Peak memory is what torch allocated
above the weights and the input.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import deep_memory, gated_norm, unit_length

BATCH, TOKENS, WIDTH, HEADS, HIDDEN = 8, 4096, 512, 8, 128
CHUNKS = (16, 64)


class Row(NamedTuple):
    """One layer's training step; None where it fails, with the reason in `note`."""

    chunk: int
    implementation: str
    milliseconds: float | None
    tokens_per_second: float | None
    peak_gigabytes: float | None
    note: str = ""


class Ours(nn.Module):
    """Projections, the operation and a projection back."""

    def __init__(self, chunk: int, *, orthogonalise: bool, recompute: int = 1, width: int = WIDTH):
        super().__init__()
        self.options = {"chunk": chunk, "orthogonalise": orthogonalise, "recompute": recompute}
        self.norm = nn.RMSNorm(width)
        self.projections = nn.Linear(width, 3 * width, bias=False)
        self.gates = nn.Linear(width, 3 * HEADS)
        self.weights = nn.Parameter(torch.randn(HEADS, 3, width // HEADS, HIDDEN) * 0.1)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) → (B, N, D)."""
        x = self.norm(x)
        rows = unit_length(self.projections(x).unflatten(-1, (3, HEADS, -1)), gated_norm)
        rate, momentum, decay = self.gates(x).float().unflatten(-1, (3, HEADS)).unbind(2)
        rate = rate.sigmoid() / self.options["chunk"]
        gates = (rate, F.logsigmoid(momentum + 2), F.logsigmoid(decay + 6))
        read, _ = deep_memory(*rows.unbind(2), *gates, self.weights, **self.options)
        return self.output(read.flatten(2))


def layers(chunk: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """(name, constructor) of ours and, where installed, of the peer."""

    def ours(**options) -> nn.Module:
        layer = Ours(chunk, **options).bfloat16()
        layer.weights.data = layer.weights.data.float()
        return layer

    yield "muse, gradient rule", lambda: ours(orthogonalise=False)
    yield "muse, gradient rule, a state in 16 chunks kept", lambda: ours(orthogonalise=False, recompute=16)
    yield "muse, orthogonalised", lambda: ours(orthogonalise=True)
    try:
        from titans_pytorch.memory_models import MemorySwiGluMLP
        from titans_pytorch.neural_memory import NeuralMemory
    except ModuleNotFoundError as missing:
        print(f"peer absent: {missing}; pip install titans-pytorch")
        return

    def peer(**options) -> nn.Module:
        head = WIDTH // HEADS
        memory = MemorySwiGluMLP(head, depth=1, expansion_factor=1.5 * HIDDEN / head)
        options = {"dim": WIDTH, "dim_head": head, "heads": HEADS, "chunk_size": chunk, "model": memory} | options
        return NeuralMemory(**options).bfloat16()

    yield "titans-pytorch", peer
    yield "titans-pytorch, spectral_norm_surprises", lambda: peer(spectral_norm_surprises=True)
    yield "titans-pytorch, gradients at each chunk's start", lambda: peer(batch_size=chunk)


def step_of(layer: nn.Module, x: Tensor, seen: Tensor) -> None:
    """One forward and backward pass."""
    for parameter in layer.parameters():
        parameter.grad = None
    x.grad = None
    output = layer(x)
    output = output[0] if isinstance(output, tuple) else output
    output.backward(seen)


def measured(layer: nn.Module, x: Tensor, repeats: int = 7, longest: float = 4000.0) -> tuple[float, float]:
    """Median milliseconds of a step, and the bytes that it allocated at its peak. A step longer than `longest`
    milliseconds is run twice."""
    seen = torch.randn_like(x)
    times = []
    for turn in range(repeats + 1):
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step_of(layer, x, seen)
        stop.record()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - held
        if turn:
            times.append(start.elapsed_time(stop))
            if times[-1] > longest:
                break
    return statistics.median(times), peak


def measure(chunks: tuple[int, ...] = CHUNKS) -> Iterator[Row]:
    """Rows as they are measured."""
    for chunk in chunks:
        for name, build in layers(chunk):
            torch.manual_seed(0)
            layer = build().cuda()
            x = torch.randn(BATCH, TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            try:
                milliseconds, peak = measured(layer, x)
                rate = BATCH * TOKENS / milliseconds * 1e3
                yield Row(chunk, name, milliseconds, rate, peak / 1e9)
            except torch.OutOfMemoryError as error:
                yield Row(chunk, name, None, None, None, f"out of memory: {str(error).splitlines()[0]}")
            del layer, x
            torch.cuda.empty_cache()
