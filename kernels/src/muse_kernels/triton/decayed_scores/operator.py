"""Scores under a decay per channel by Triton kernels: one launch forward and one backward, whatever the tokens."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...decayed_arguments import DecayedScores, check_decayed_scores, computed_in
from ...double_backward import differentiated_again, gradients_by_torch
from ...refusals import WIDEST
from ...torch.decayed_scores import of_documents
from ..memory import unit_last_stride
from .backward_kernel import scores_backward_kernel
from .forward_kernel import scores_kernel

WIDEST_KEY = WIDEST["decayed_scores"]["key"]
RESULTS, WITHOUT_REMOVAL = 9, 4
"""Of the operation, and those of a memory from which nothing is taken out."""
BLOCK = 16
"""Tokens of a block, whose pairs are taken one by one; a product has as many rows at least."""
PRECISION = "ieee"
"""Of products of float32 operands."""
HIGHEST = 2**31 - 1
"""Programs of a launch."""


class Tile(NamedTuple):
    """Channels of a program at most, and its warps."""

    channels: int
    warps: int

    def launch(self, key_width: int) -> dict:
        channels = min(self.channels, max(16, triton.next_power_of_2(key_width)))
        return {"BK": channels, "num_warps": self.warps, "num_stages": 1}


FORWARD, BACKWARD = Tile(16, 4), Tile(16, 4)
"""Forward, a program goes through all channels so many at a time."""


def decayed_scores(
    query: Tensor, key: Tensor, log_decay: Tensor, *, probe: Tensor | None = None, insert: Tensor | None = None,
    resets: Tensor | None = None, chunk: int = 64,
) -> DecayedScores:  # fmt: skip
    """As `muse_kernels.decayed_scores`, computed in float32, K up to 128; products of tensors that are all
    bfloat16, but for the decays, have operands of bfloat16. A second derivative recomputes by torch operations."""
    given = check_decayed_scores(query, key, log_decay, probe, insert, resets, chunk)
    if computed_in(*given[:5]) == torch.float64:
        raise ValueError("decayed_scores: the triton kernels compute in float32; use backend torch for float64")
    if query.shape[-1] > WIDEST_KEY:
        raise ValueError(
            f"decayed_scores: the triton kernels hold keys up to {WIDEST_KEY} wide, got K={query.shape[-1]}; "
            "use backend torch"
        )
    found = _forward(*given, chunk)
    return DecayedScores(*(found[:WITHOUT_REMOVAL] if probe is None else found))


def _shapes(query: Tensor, removes: bool, chunk: int) -> list[tuple[int, ...]]:
    """Of the results in the order of `DecayedScores`; absent ones are empty."""
    batch, tokens, heads, width = query.shape
    cells = (batch, heads, (tokens + chunk - 1) // chunk)
    square, along, across = (*cells, chunk, chunk), (*cells, chunk, width), (*cells, width, chunk)
    shapes = [square, along, across, (*cells, width)]
    return shapes + ([square, square, square, along, across] if removes else [(0,)] * 5)


def _results(query: Tensor, removes: bool, chunk: int) -> tuple[Tensor, ...]:
    return tuple(query.new_empty(shape, dtype=torch.float32) for shape in _shapes(query, removes, chunk))


def _flags(*tensors: Tensor | None) -> dict:
    halved = all(x is None or x.dtype == torch.bfloat16 for x in tensors)
    return {"OPERAND": tl.bfloat16 if halved else tl.float32, "PRECISION": PRECISION}


def _placed(*tensors: Tensor | None) -> tuple[list[Tensor | None], list[int]]:
    """The tensors (B, N, H, K) with neighbouring channels, and the strides of their other axes."""
    placed = [None if x is None else unit_last_stride(x) for x in tensors]
    return placed, [step for x in placed for step in ((0, 0, 0) if x is None else x.stride()[:3])]


def _sizes(query: Tensor, document: Tensor | None, removes: bool, chunk: int) -> tuple[int, int, dict]:
    """Chunks of a row, blocks of a chunk and the compile-time sizes."""
    chunks, blocks = triton.cdiv(query.shape[1], chunk), triton.cdiv(chunk, BLOCK)
    sizes = {"K": query.shape[-1], "C": chunk, "T": BLOCK, "BLOCKS": blocks, "REMOVES": removes}
    return chunks, blocks, sizes | {"DOCUMENTS": document is not None}


def _check_programs(programs: int) -> int:
    if programs > HIGHEST:
        raise ValueError(f"decayed_scores: the triton kernels number {HIGHEST} programs, this call has {programs}")
    return programs


@torch.library.custom_op("muse_kernels::decayed_scores", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, log_decay: Tensor, probe: Tensor | None, insert: Tensor | None,
    document: Tensor | None, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    removes = probe is not None
    results = _results(query, removes, chunk)
    if query.numel():
        batch, tokens, heads, _ = query.shape
        placed, strides = _placed(query, key, log_decay, probe, insert)
        chunks, blocks, sizes = _sizes(query, document, removes, chunk)
        programs = _check_programs(batch * heads * chunks * blocks)
        flags = sizes | FORWARD.launch(query.shape[-1]) | _flags(query, key, probe, insert)
        document = None if document is None else document.contiguous()
        with torch.cuda.device_of(query):
            scores_kernel[(programs,)](*placed, document, *results, tokens, heads, chunks, *strides, **flags)
    return results


@_forward.register_fake
def _(query, key, log_decay, probe, insert, document, chunk):
    return _results(query, probe is not None, chunk)


@torch.library.custom_op("muse_kernels::decayed_scores_backward", mutates_args=())
def _backward(
    gradients: list[Tensor], query: Tensor, key: Tensor, log_decay: Tensor, probe: Tensor | None,
    insert: Tensor | None, document: Tensor | None, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    removes = probe is not None
    found = _leaves(query, key, log_decay, probe, insert)
    if query.numel():
        batch, tokens, heads, width = query.shape
        placed, strides = _placed(query, key, log_decay, probe, insert)
        chunks, _, sizes = _sizes(query, document, removes, chunk)
        flags = sizes | BACKWARD.launch(width) | _flags(query, key, probe, insert)
        flags["PARTS"] = triton.cdiv(width, flags["BK"])
        programs = _check_programs(batch * heads * chunks * flags["PARTS"])
        incoming = [x.contiguous() for x in gradients]
        incoming += [query.new_empty(0)] * (RESULTS - len(incoming))  # of results that are absent
        document = None if document is None else document.contiguous()
        with torch.cuda.device_of(query):
            scores_backward_kernel[(programs,)](
                *placed, document, *incoming, *found, tokens, heads, chunks, *strides, *found[0].stride()[:3], **flags
            )
    return found


def _leaves(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of the arguments, empty for absent ones."""
    shape = next(x.shape for x in tensors if x is not None)
    like = next(x for x in tensors if x is not None)
    return tuple(like.new_empty(0) if x is None else x.new_empty(shape) for x in tensors)


@_backward.register_fake
def _(gradients, query, key, log_decay, probe, insert, document, chunk):
    return _leaves(query, key, log_decay, probe, insert)


def _save(ctx, inputs, output):
    *tensors, ctx.chunk = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx, *gradients):
    *tensors, document = ctx.saved_tensors
    query, removes = tensors[0], tensors[3] is not None
    shapes = _shapes(query, removes, ctx.chunk)[: RESULTS if removes else WITHOUT_REMOVAL]
    gradients = [query.new_zeros(shape, dtype=torch.float32) if x is None else x for x, shape in zip(gradients, shapes)]
    if differentiated_again(*tensors, *gradients):

        def by_torch(*given):
            return tuple(of_documents(*given, document, ctx.chunk))[: len(shapes)]

        found = gradients_by_torch(by_torch, tensors, gradients)
    else:
        found = _backward(gradients, *tensors, document, ctx.chunk)
        found = [None if x is None else y for x, y in zip(tensors, found)]
    return *found, None, None


_forward.register_autograd(_gradients, setup_context=_save)
