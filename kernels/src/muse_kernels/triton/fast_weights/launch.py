"""Launches of the fast-weights kernels: memory, tiles, warps. No autograd, no validation."""

from types import MappingProxyType
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..memory import MOST_OF_AN_AXIS
from .gradients import gradients_kernel
from .prepare import prepare_kernel
from .scan_kernels import ends_kernel, forward_kernel, states_kernel


class Launch(NamedTuple):
    """How one kernel runs: key and value columns of a tile, warps of a program, stages of its load pipeline.

    `registers` caps those of a thread, so that more programs fit a multiprocessor.
    """

    keys: int
    values: int
    warps: int
    stages: int
    registers: int | None = None


class Tuning(NamedTuple):
    """One launch a kernel. Forward, transitions, ends and prepare hold the whole key width, prepare no values.

    `leaf` is the width of the blocks inverted by substitution, a power of two from 2 to 16.
    """

    leaf: int
    prepare: Launch
    forward: Launch
    transitions: Launch
    states: Launch
    ends: Launch
    gradients: Launch


LONGEST_HALF, LONGEST_SINGLE = 64, 16  # tokens of a chunk; twice the bytes fill the shared memory

HALF = MappingProxyType(
    {
        "hebbian": Tuning(
            leaf=16,
            prepare=Launch(128, 0, 4, 1),
            forward=Launch(128, 32, 4, 2),
            transitions=Launch(128, 32, 4, 2),
            states=Launch(64, 64, 4, 3),
            ends=Launch(128, 32, 4, 2),
            gradients=Launch(64, 64, 4, 3),
        ),
        "delta": Tuning(
            leaf=2,
            prepare=Launch(128, 0, 4, 1),
            forward=Launch(128, 64, 4, 2),
            transitions=Launch(128, 64, 4, 2),
            states=Launch(64, 64, 4, 3),
            ends=Launch(128, 32, 4, 2),
            gradients=Launch(128, 64, 8, 2),
        ),
    }
)
NARROW = MappingProxyType(
    {
        "hebbian": HALF["hebbian"]._replace(gradients=Launch(64, 64, 4, 1)),
        "delta": HALF["delta"]._replace(
            prepare=Launch(128, 0, 4, 1, registers=168), ends=Launch(128, 64, 4, 2), gradients=Launch(64, 64, 4, 1)
        ),
    }
)
"""Of heads whose values one tile of the gradients holds."""
DEEP = MappingProxyType(
    {
        rule: tuning._replace(forward=Launch(128, 64, 4, 3), ends=Launch(128, 64, 4, 3))
        for rule, tuning in HALF.items()
    }
)
"""Of heads with more than 64 key columns, where a program may have ``DEEP_MEMORY`` bytes of shared memory (Hopper's has
232,448, an A100's 166,912): the loads of one chunk stay in flight during the products of another."""
DEEP_MEMORY = 197_632
SINGLE = Tuning(
    leaf=16,
    prepare=Launch(128, 0, 4, 1),
    forward=Launch(128, 32, 4, 1),
    transitions=Launch(128, 32, 4, 1),
    states=Launch(64, 32, 4, 1),
    ends=Launch(128, 32, 4, 1),
    gradients=Launch(64, 32, 4, 1),
)


def tuning_of(dtype: torch.dtype, rule: str, key_width: int, value_width: int, memory: int) -> Tuning:
    """The launches for heads of these widths on a device whose programs may have ``memory`` bytes of shared memory."""
    if dtype == torch.float32:
        return SINGLE
    if max(key_width, value_width) <= 64:
        return NARROW[rule]
    return (DEEP if key_width > 64 and memory >= DEEP_MEMORY else HALF)[rule]


class Problem(NamedTuple):
    """Inputs of both passes: query, key, value of one dtype with unit last stride; log-decay and rate float32."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    rate: Tensor
    initial: Tensor | None
    resets: Tensor | None
    delta: bool
    read_before: bool
    chunk: int
    tuning: Tuning

    @property
    def chunks(self) -> int:
        return -(-self.query.shape[1] // self.chunk)

    @property
    def rows(self) -> int:
        """Rows of the launch grid: batch times heads."""
        return self.query.shape[0] * self.query.shape[2]

    @property
    def extent(self) -> tuple[int, int, int]:
        """Tokens and heads of a row, and rows."""
        return self.query.shape[1], self.query.shape[2], self.rows

    def grid(self, programs: int) -> tuple[int, int, int]:
        """Programs a row, and the rows over two axes; see `row_of_program`."""
        layers = triton.cdiv(self.rows, MOST_OF_AN_AXIS)
        return programs, triton.cdiv(self.rows, layers), layers

    @property
    def gates(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.log_decay, self.rate, self.resets

    def sizes(self, launch: Launch) -> dict:
        """Compile-time widths and tiles of a kernel, and its launch."""
        key_width, value_width = self.query.shape[-1], self.value.shape[-1]
        key_tile, value_tile = min(launch.keys, tile(key_width)), min(launch.values, tile(value_width))
        whole_tiles = key_width % key_tile == 0 and value_width % value_tile == 0
        return {
            "K": key_width,
            "M": value_width,
            "BK": key_tile,
            "BM": value_tile,
            "FULL": self.query.shape[1] % self.chunk == 0 and whole_tiles,
            **self.common(launch),
        }

    def common(self, launch: Launch) -> dict:
        """What every kernel takes."""
        return {
            "C": self.chunk,
            "DELTA": self.delta,
            "PRECISION": "ieee" if self.query.dtype == torch.float32 else "tf32",
            "num_warps": launch.warps,
            "num_stages": launch.stages,
            "maxnreg": launch.registers,
        }


class Prepared(NamedTuple):
    """What `prepare_kernel` leaves for both passes; the last axes are C tokens of a chunk."""

    scores: Tensor
    """(B H, chunks, C, C), in the dtype of query."""
    inverse: Tensor
    """The same for the delta rule, else empty."""
    factors: Tensor
    """(B H, chunks, 3, C) float32: decay from the start to a read and to a write; rate times decay to the end."""
    kept: Tensor
    """(B H, chunks) float32: decay across the chunk."""


def tile(width: int) -> int:
    """Smallest power of two that holds `width` and that tl.dot accepts."""
    return max(16, 1 << (width - 1).bit_length())


def prepared_shapes(rows: int, chunks: int, chunk: int, delta: bool) -> tuple[tuple[int, ...], ...]:
    """Shapes of a `Prepared`."""
    square = (rows, chunks, chunk, chunk)
    return square, square if delta else (0,), (rows, chunks, 3, chunk), (rows, chunks)


def new_prepared(p: Problem) -> Prepared:
    """Memory for it."""
    scores, inverse, factors, kept = prepared_shapes(p.rows, p.chunks, p.chunk, p.delta)
    return Prepared(
        p.query.new_empty(scores), p.query.new_empty(inverse), p.rate.new_empty(factors), p.rate.new_empty(kept)
    )


def forward(p: Problem) -> tuple[Tensor, Tensor, Tensor, Prepared]:
    """Output (B, N, H, M), final (B, H, K, M), the delta rule's residual (B, N, H, M), and what was prepared."""
    batch, tokens, heads, key_width = p.query.shape
    value_width = p.value.shape[-1]
    prepared = new_prepared(p)
    output = p.value.new_empty(batch, tokens, heads, value_width)
    final = p.rate.new_empty(batch, heads, key_width, value_width)
    residual = p.value.new_empty(output.shape if p.delta else 0)
    if p.rows:
        prepare(p, prepared)
        scan_forward(p, prepared, output, final, residual)
    return output, final, residual, prepared


def backward(
    p: Problem, residual: Tensor, prepared: Prepared, grad_output: Tensor, grad_final: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to query, key, value, log-decay, rate and initial; `residual` is value for the hebbian rule."""
    grad_query, grad_key, grad_value = (x.new_empty(x.shape) for x in (p.query, p.key, p.value))
    shares = triton.cdiv(p.query.shape[-1], p.sizes(p.tuning.gradients)["BK"])
    grad_decay, grad_rate = (p.rate.new_empty(shares, *p.rate.shape) for _ in range(2))
    widths = p.query.shape[-1], p.value.shape[-1]
    grad_initial = p.rate.new_empty(p.query.shape[0], p.query.shape[2], *widths)
    if p.rows:
        states, grad_ends = (p.value.new_empty(p.rows, p.chunks, *widths) for _ in range(2))
        scan_states(p, residual, prepared, states)
        scan_ends(p, prepared, grad_output, grad_final, grad_ends, grad_value, grad_initial)
        within = (grad_query, grad_key, grad_decay, grad_rate)
        gather_gradients(p, residual, states, grad_output, grad_ends, grad_value, *within)
    grad_decay, grad_rate = (x[0] if shares == 1 else x.sum(0) for x in (grad_decay, grad_rate))
    return grad_query, grad_key, grad_value, grad_decay, grad_rate, grad_initial


def steps(*tensors: Tensor | None) -> list[int]:
    """Strides over batch, token and head of each (B, N, H, ...) or (B, N) tensor; zeros for an absent one."""
    found = []
    for x in tensors:
        found += (0, 0) if x is None else x.stride()[:3]
    return found


def prepare(p: Problem, prepared: Prepared) -> None:
    """Launch `prepare_kernel`."""
    key_width = p.query.shape[-1]
    prepare_kernel[p.grid(p.chunks)](
        *(p.query, p.key, *p.gates, *prepared, *p.extent),
        *steps(p.query, p.key, *p.gates),
        K=key_width,
        BK=tile(key_width),
        LEAF=p.tuning.leaf,
        JOIN=tl.float32 if p.query.dtype == torch.float32 else tl.float16,
        FULL=p.query.shape[1] % p.chunk == 0 and key_width == tile(key_width),
        READ_BEFORE=p.read_before,
        HAS_RESETS=p.resets is not None,
        **p.common(p.tuning.prepare),
    )


def scan_forward(p: Problem, prepared: Prepared, output: Tensor, final: Tensor, residual: Tensor) -> None:
    """Launch `forward_kernel`."""
    sizes = p.sizes(p.tuning.forward)
    forward_kernel[p.grid(triton.cdiv(sizes["M"], sizes["BM"]))](
        *(p.query, p.key, p.value, *prepared, p.initial, output, final, residual, *p.extent),
        *steps(p.query, p.key, p.value),
        **sizes,
        HAS_INITIAL=p.initial is not None,
    )


def scan_states(p: Problem, residual: Tensor, prepared: Prepared, states: Tensor) -> None:
    """Launch `states_kernel`."""
    sizes = p.sizes(p.tuning.states)
    del sizes["DELTA"]
    states_kernel[p.grid(triton.cdiv(sizes["K"], sizes["BK"]) * triton.cdiv(sizes["M"], sizes["BM"]))](
        *(p.key, residual, prepared.factors, prepared.kept, p.initial, states, *p.extent),
        *steps(p.key, residual),
        **sizes,
        HAS_INITIAL=p.initial is not None,
    )


def scan_ends(
    p: Problem,
    prepared: Prepared,
    grad_output: Tensor,
    grad_final: Tensor | None,
    grad_ends: Tensor,
    grad_value: Tensor,
    grad_initial: Tensor,
) -> None:
    """Launch `ends_kernel`."""
    sizes = p.sizes(p.tuning.ends)
    ends_kernel[p.grid(triton.cdiv(sizes["M"], sizes["BM"]))](
        *(p.query, p.key, *prepared, grad_output, grad_final, grad_ends, grad_value, grad_initial, *p.extent),
        *steps(p.query, p.key, grad_output),
        **sizes,
        HAS_FINAL=grad_final is not None,
    )


def gather_gradients(
    p: Problem,
    residual: Tensor,
    states: Tensor,
    grad_output: Tensor,
    grad_ends: Tensor,
    grad_value: Tensor,
    *gradients: Tensor,
) -> None:
    """Launch `gradients_kernel`; `gradients` receive those of query and key, and the shares of log-decay and rate."""
    sizes = p.sizes(p.tuning.gradients)
    gradients_kernel[p.grid(p.chunks * triton.cdiv(sizes["K"], sizes["BK"]))](
        *(p.query, p.key, residual, *p.gates, states, grad_output, grad_ends, grad_value, *gradients, *p.extent),
        *steps(p.query, p.key, residual, *p.gates, grad_output),
        **sizes,
        READ_BEFORE=p.read_before,
        HAS_RESETS=p.resets is not None,
    )
