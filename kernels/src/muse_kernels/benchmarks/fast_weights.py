"""Fast weights against flash-linear-attention's kernels.

B 4, N 4096, H 16, K = M = 128, bfloat16; medians of device time, caches flushed between repeats. The peers tune
themselves on their first call, which takes minutes.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..triton import fast_weights

BATCH, TOKENS, HEADS, WIDTH = 4, 4096, 16, 128
BYTES = {"forward": 4 * 2 * BATCH * TOKENS * HEADS * WIDTH, "backward": 7 * 2 * BATCH * TOKENS * HEADS * WIDTH}
"""That must move: query, key, value and output; the first three, the output's gradient and theirs. bfloat16."""
SLEEP_CYCLES = 4_000_000  # 2 ms, longer than the host takes to launch any of these


class Row(NamedTuple):
    """One implementation's times; None where it refuses, with the reason in `note`."""

    operation: str
    implementation: str
    forward_microseconds: float | None
    backward_microseconds: float | None
    note: str = ""


class Inputs(NamedTuple):
    """Leaves of one problem; `rate_half` is `rate` as the peers take it."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    rate: Tensor
    rate_half: Tensor


def draw(device: str = "cuda") -> Inputs:
    """Unit keys, log-decay in (-0.1, 0), rate in (0, 1)."""
    random = torch.Generator(device).manual_seed(0)
    shape = (BATCH, TOKENS, HEADS, WIDTH)
    query, key, value = (torch.randn(shape, device=device, generator=random) for _ in range(3))
    log_decay, rate = (torch.rand(shape[:-1], device=device, generator=random) for _ in range(2))
    key = torch.nn.functional.normalize(key, dim=-1)
    halves = [x.to(torch.bfloat16).requires_grad_() for x in (query, key, value)]
    return Inputs(
        *halves,
        (-0.1 * log_decay).requires_grad_(),
        rate.requires_grad_(),
        rate.detach().to(torch.bfloat16).requires_grad_(),
    )


def implementations(x: Inputs) -> Iterator[tuple[str, str, Callable[[], Tensor], list[Tensor]]]:
    """(operation, implementation, call, leaves) of ours and, where installed, of the peers."""
    qkv = [x.query, x.key, x.value]
    gates = [x.log_decay, x.rate]
    for rule in ("hebbian", "delta"):
        yield rule, "muse", lambda rule=rule: fast_weights(*qkv, *gates, rule=rule)[0], qkv + gates
    try:
        from fla.ops.delta_rule import chunk_delta_rule
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.simple_gla import chunk_simple_gla
    except ModuleNotFoundError as missing:
        print(f"peers absent: {missing}; pip install fla-core einops packaging")
        return
    gamma = x.log_decay.detach()[0, 0].contiguous()
    beta = x.rate_half
    yield (
        *("delta", "fla chunk_gated_delta_rule"),
        lambda: chunk_gated_delta_rule(*qkv, g=x.log_decay, beta=beta, scale=1.0)[0],
        [*qkv, x.log_decay, beta],
    )
    yield "delta", "fla chunk_delta_rule (no decay)", lambda: chunk_delta_rule(*qkv, beta, scale=1.0)[0], [*qkv, beta]
    yield (
        *("hebbian", "fla chunk_simple_gla g_gamma (constant decay)"),
        lambda: chunk_simple_gla(*qkv, g_gamma=gamma, scale=1.0)[0],
        qkv,
    )
    yield (
        *("hebbian", "fla chunk_simple_gla g"),
        lambda: chunk_simple_gla(*qkv, g=x.log_decay, scale=1.0)[0],
        [*qkv, x.log_decay],
    )


def median(call: Callable[[], object], repeats: int = 50) -> float:
    """Microseconds on the device. It sleeps first, so that the host has enqueued the call when the clock starts."""
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for _ in range(5):
        call()
    for start, stop in marks:
        flush.zero_()
        torch.cuda._sleep(SLEEP_CYCLES)
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in marks) * 1e3


def measure() -> Iterator[Row]:
    """Rows as they are measured: forward without gradients, and the backward pass alone."""
    inputs = draw()
    grad = torch.randn(inputs.value.shape, device="cuda").to(torch.bfloat16)
    for operation, name, call, leaves in implementations(inputs):
        with torch.no_grad():
            forward = median(call)
        output = call()
        try:
            backward, note = median(lambda o=output, n=leaves: torch.autograd.grad(o, n, grad, retain_graph=True)), ""
        except RuntimeError as refusal:
            backward, note = None, f"backward refused: {str(refusal).splitlines()[0]}"
        yield Row(operation, name, forward, backward, note)
