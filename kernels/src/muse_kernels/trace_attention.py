"""Trace attention, causal softmax attention of bounded Hilbert–Schmidt norm: served by the backend asked for."""

from functools import reduce

import torch
from torch import Tensor

from .dispatch import implementation, select_backend
from .request import KernelRequest
from .trace_arguments import Carried, Traced


def trace_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bound: Tensor,
    *,
    window: int | None = None,
    knee: float = 0.5,
    logit_scale: float | None = None,
    initial: Carried | None = None,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Traced, Carried]:
    """Causal attention o_t = s_t Σ_j p_tj v_j whose rows s_t p_t keep Σ_{r ≤ t} s_r² ‖p_r‖² < b_t², within a document.

    p_t is the softmax of the logits over the tokens j ≤ t of t's document and window, Q_t = Σ_{r ≤ t} ‖p_r‖² its
    squared Hilbert–Schmidt norm so far, and s_t² = (g(Q_t; b_t²) − g(Q_{t−1}; b_t²)) / ‖p_t‖² with g(Q; β) = Q up to
    knee β and β − (1 − knee)² β² / (Q + (1 − 2 knee) β) beyond. A row is untouched while Q_t ≤ knee b_t².

    Args:
        query: (B, N, H, K).
        key, value: (B, N, G, K) and (B, N, G, M); each of the G heads serves H / G queries.
        bound: b_t > 0, broadcastable to (B, N, H). The norm stays below it where it does not fall along a document.
        window: a token sees itself and the window − 1 tokens before; None for all.
        knee: share of b² that is used before scaling begins, in [0, 1).
        logit_scale: factor of q·k; None is K^(−1/2).
        initial: the final of an earlier call; None for none.
        resets: (B, N) bool, true where a document starts: nothing before is seen and Q starts at zero.
        backend: "auto", or triton, native, torch, reference; `muse_kernels.select_backend` says what "auto" takes.

    Returns ((output, scale, squares), final): see `Traced` and `Carried`. Softmax and sums are float32, or float64
    where an input is. Gradients of any order to every floating tensor. ValueError names the argument and the shapes
    that do not fit. Source: mathematics §6.
    """
    dtype = reduce(torch.promote_types, (query.dtype, key.dtype, value.dtype))
    needs = {"gradient"} if any(x.requires_grad for x in (query, key, value, bound)) else set()
    if resets is not None:
        needs.add("resets")
    request = KernelRequest(
        "trace_attention",
        query.device.type,
        "float64" if bound.dtype == torch.float64 else str(dtype).removeprefix("torch."),
        {"key": query.shape[-1], "value": value.shape[-1]},
        frozenset(needs),
    )
    function = implementation("trace_attention", select_backend(request, backend).backend)
    options = {"window": window, "knee": knee, "logit_scale": logit_scale, "initial": initial, "resets": resets}
    return function(query, key, value, bound, **options)
