"""What computes a memory with a decay per channel: ours, or on a GPU fla-core's where a recipe asks for it.

Letters: B batch, N tokens, H heads, K key width, M value width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

import muse_kernels
from muse_peers.recurrence import Writing, recurrence

SERVED = (Version("0.6.0"), Version("0.7"))
"""fla-core from the first to before the second."""
Recurrence = Callable[[Tensor, Writing, Tensor | None, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""As ``recurrence`` without ``scores``."""


def channel_decay_kernel(
    rule: str, kernel: str, scores: Callable[..., Any] = muse_kernels.decayed_scores
) -> Recurrence:
    """``recurrence`` with ``scores`` for the operation ``decayed_scores``, or with ``kernel`` = fla what takes
    fla-core's on a GPU in bfloat16 and that elsewhere: fla-core compiles for GPUs alone, and rounds products of float32
    there. Raises ValueError where it is not installed."""
    own = partial(recurrence, scores=scores)
    if kernel == "own":
        return own
    reason = missing()
    if reason is not None:
        raise ValueError(f'{rule}: kernel = "fla" needs fla-core, but {reason}')
    served = FLA[rule]

    def on_gpu(
        query: Tensor, writing: Writing, initial: Tensor | None, resets: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if query.device.type != "cuda" or writing.value.dtype != torch.bfloat16 or valid is not None:
            return own(query, writing, initial, resets, valid)
        return packed(served, query, writing, initial, resets)

    return on_gpu


def missing() -> str | None:
    """Why fla-core cannot be used; None where it can. Imports nothing."""
    for module, distribution in (("fla", "fla-core"), ("einops", "einops"), ("triton", "triton")):
        if find_spec(module) is None:
            return f"{distribution} is not installed; pip install 'muse-peers[fla]'"
    try:
        found = Version(metadata.version("fla-core"))
    except metadata.PackageNotFoundError:
        return "the module fla is there but not from fla-core; pip install 'muse-peers[fla]'"
    first, beyond = SERVED
    if not first <= found < beyond:
        return f"fla-core {found} is not among the versions served, {first} to before {beyond}"
    return None


def packed(
    served: Callable[..., tuple[Tensor, Tensor]],
    query: Tensor,
    writing: Writing,
    initial: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``recurrence`` by ``served``, one of ``FLA``, without padding: rows go as documents one after the other, whose
    starts fla-core takes for resets (B, N); the host waits for them."""
    batch, length, heads, width = query.shape
    dtype = writing.value.dtype
    low = [None if part is None else part.to(dtype) for part in writing]
    low[2] = writing.log_decay.float()
    if resets is None:
        return served(query.to(dtype), Writing(*low), initial, None)
    starts = resets.clone()
    starts[:, 0] = True
    index = starts.flatten().nonzero().flatten()
    bounds = torch.cat((index, index.new_tensor([batch * length]))).int()
    first = query.new_zeros(len(index), heads, width, writing.value.shape[-1], dtype=torch.float32)
    rows = torch.arange(0, batch * length, length, device=query.device)
    own = torch.searchsorted(index, rows)
    if initial is not None:
        first = first.index_copy(0, own, initial.float().masked_fill(resets[:, :1, None, None], 0.0))
    flat = [None if part is None else part.flatten(0, 1)[None] for part in low]
    output, last = served(query.to(dtype).flatten(0, 1)[None], Writing(*flat), first, bounds)
    ends = torch.cat((own[1:], own.new_tensor([len(index)]))) - 1
    return output[0].unflatten(0, (batch, length)), last[ends]


def gla(query: Tensor, writing: Writing, initial: Tensor | None, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    """A decay per channel and nothing removed."""
    from fla.ops.gla import chunk_gla

    return chunk_gla(
        query,
        writing.key,
        writing.value,
        g=writing.log_decay,
        scale=1.0,
        initial_state=initial,
        output_final_state=True,
        cu_seqlens=bounds,
    )


def removing(query: Tensor, writing: Writing, initial: Tensor | None, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    """A decay per channel and a rank-one removal."""
    from fla.ops.generalized_delta_rule.dplr import chunk_dplr_delta_rule

    return chunk_dplr_delta_rule(
        q=query,
        k=writing.key,
        v=writing.value,
        a=writing.probe,
        b=writing.insert,
        gk=writing.log_decay,
        scale=1.0,
        initial_state=initial,
        output_final_state=True,
        cu_seqlens=bounds,
    )


FLA = {"gla": gla, "kda": removing, "rwkv7": removing}
