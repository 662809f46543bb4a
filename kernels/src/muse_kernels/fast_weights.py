"""Fast weights, the linear memories of a recurrent layer: served by the backend asked for."""

import torch
from torch import Tensor

from .arguments import Call, check_fast_weights, checks_values
from .dispatch import implementation, select_backend
from .request import KernelRequest


def fast_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    *,
    rule: str = "hebbian",
    initial: Tensor | None = None,
    resets: Tensor | None = None,
    read: str = "after",
    chunk: int = 64,
    group=None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Matrices W_t (K, M) that decay, are written by keys and values and read by queries, one a head.

    hebbian: W_t = e^{g_t} W_{t-1} + b_t k_t v_t^T.
    delta:   W_t = e^{g_t} (I - b_t k_t k_t^T) W_{t-1} + b_t k_t v_t^T; stable for 0 <= b ||k||^2 <= 2.

    Args:
        query, key: q and k, (B, N, H, K).
        value: v, (B, N, H, M).
        log_decay: g <= 0, (B, N, H), nats a token.
        rate: b, (B, N, H).
        rule: "hebbian" or "delta".
        initial: W_{-1}, (B, H, K, M), the `final` of an earlier call; None is zero.
        resets: (B, N) bool; where true W_{t-1} is taken as zero, `initial` included: a document starts here.
        read: "after" for W_t^T q_t, "before" for W_{t-1}^T q_t.
        chunk: tokens computed together. Changes speed and rounding, never the model; backends may round it.
        group: NotImplementedError unless None. Tokens on several processes are computed around the operation, as in
            `causal_resolvent_diagonal`.
        backend: "auto", or triton, native, torch, reference; `muse_kernels.select_backend` says what "auto" takes.

    Returns (output, final): (B, N, H, M) in the dtype of query, key and value, and W_{N-1} (B, H, K, M), float32, or
    float64 where any input is. Any strides, empty batches; bfloat16 products are accumulated in float32. Gradients to
    every tensor, of second order too. ValueError names the argument and the shapes that do not fit. Source:
    mathematics §3.
    """
    layout = check_fast_weights(Call(query, key, value, log_decay, rate, rule, initial, resets, read, chunk), group)
    if checks_values():
        _check_values(query=query, key=key, value=value, log_decay=log_decay, rate=rate, initial=initial)
    tensors = (query, key, value, log_decay, rate, initial)
    needs = {"gradient"} if any(x is not None and x.requires_grad for x in tensors) else set()
    if resets is not None:
        needs.add("resets")
    double = layout.state_dtype == torch.float64
    request = KernelRequest(
        "fast_weights",
        query.device.type,
        "float64" if double else str(layout.output_dtype).removeprefix("torch."),
        {"key": layout.key_width, "value": layout.value_width},
        frozenset(needs),
    )
    function = implementation("fast_weights", select_backend(request, backend).backend)
    options = {"rule": rule, "initial": initial, "resets": resets, "read": read, "chunk": chunk}
    return function(query, key, value, log_decay, rate, **options)


def _check_values(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            raise ValueError(f"fast_weights: {name} holds values that are not finite")
    if (tensors["log_decay"] > 0).any():
        raise ValueError(f"fast_weights: log_decay must be <= 0, its largest is {tensors['log_decay'].max().item():g}")
