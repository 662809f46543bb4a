"""Deep memory, one token at a time in float64 with autograd for the inner gradient: the definition.

Shapes: B batch, N tokens, H heads, K key width, M value width, E hidden width, P matrices.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..deep_memory_arguments import DeepMemoryCall, DeepMemoryLayout, DeepMemoryState, checked, first_state


@checked
def deep_memory(call: DeepMemoryCall, layout: DeepMemoryLayout) -> tuple[Tensor, DeepMemoryState]:
    """Sequential deep memory; arguments, results and errors as `muse_kernels.deep_memory`.

    Computes in float64 whatever the inputs and casts the results back; `recompute` is ignored. Source: mathematics §3.
    """
    query, key, value, rate, decay = (
        x.to(torch.float64) for x in (call.query, call.key, call.value, call.rate, call.log_decay)
    )
    learned = call.weights.to(torch.float64).expand(layout.state_shape)
    weights, momentum, pending, kept, *window = first_state(call, layout, torch.float64)
    outputs = []
    for t in range(layout.tokens):
        if call.resets is not None:
            starts = call.resets[:, t]
            weights = torch.where(starts[:, None, None, None, None], learned, weights)
            momentum, pending = (x.masked_fill(starts[:, None, None, None, None], 0.0) for x in (momentum, pending))
            kept = kept.masked_fill(starts[:, None], 0.0)
            window[2] = window[2].masked_fill(starts[:, None, None], 0.0)
        outputs.append(answer(weights, query[:, t, :, None])[:, :, 0])
        window = [torch.cat((past, x[:, t : t + 1]), 1) for past, x in zip(window, (key, value, rate), strict=True)]
        momentum = _shrunk(momentum, call.log_momentum, t) + torch.func.grad(_loss)(weights, *window)
        entered = rate[:, t, :, None, None, None] if call.orthogonalise else momentum
        pending = decay[:, t].exp()[..., None, None, None] * pending + entered
        kept = kept + decay[:, t]
        if (call.offset + t + 1) % call.chunk == 0:
            step = pending * orthogonalised(momentum) if call.orthogonalise else pending
            weights = kept.exp()[..., None, None, None] * weights - step
            pending, kept = torch.zeros_like(pending), torch.zeros_like(kept)
        window = [x[:, 1:] for x in window]
    final = DeepMemoryState(weights, momentum, pending, kept, *window)
    output = torch.stack(outputs, dim=1).to(layout.output_dtype)
    return output, DeepMemoryState(*(x.to(layout.state_dtype) for x in final))


def answer(weights: Tensor, x: Tensor) -> Tensor:
    """f(x; W) for x (B, H, n, K) and W (B, H, P, K, E)."""
    if weights.shape[2] == 1:
        return x @ weights[:, :, 0]
    gate, up, down = weights.unbind(2)
    return x + (F.silu(x @ gate) * (x @ up)) @ down.transpose(-1, -2)


def _loss(weights: Tensor, key: Tensor, value: Tensor, rate: Tensor) -> Tensor:
    """Half the sum of r ||f(k) - v||^2 over tokens, rows and heads; key (B, n, H, K)."""
    error = answer(weights, key.transpose(1, 2)) - value.transpose(1, 2)
    return 0.5 * (rate.transpose(1, 2)[..., None] * error.square()).sum()


def _shrunk(momentum: Tensor, log_momentum: Tensor | None, t: int) -> Tensor:
    if log_momentum is None:
        return torch.zeros_like(momentum)
    return log_momentum[:, t].to(torch.float64).exp()[..., None, None, None] * momentum


def orthogonalised(x: Tensor) -> Tensor:
    """NS5 of each matrix (..., K, E): X over its Frobenius norm, then five times aX + (b XX^T + c (XX^T)^2) X."""
    x = x / (x.square().sum((-1, -2), keepdim=True) + 1e-12).sqrt()
    for _ in range(5):
        gram = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x
