"""Second derivatives of compiled operations, by the torch backend's."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiate_gradients(
    function: Callable, inputs: Sequence[Tensor], gradients: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Cotangents of (*gradients, *inputs), given those of the inputs' gradients.

    `function` maps the inputs to outputs differentiably; `gradients` are the outputs' incoming gradients.
    """
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in inputs]
        gradients = [g.detach().requires_grad_() for g in gradients]
        first = torch.autograd.grad(function(*inputs), inputs, gradients, create_graph=True, allow_unused=True)
        # A gradient that nobody wanted is an empty tensor, and so is its cotangent.
        pairs = [(f, c) for f, c in zip(first, cotangents, strict=True) if f is not None and c is not None]
        pairs = [(f, c.reshape(f.shape)) for f, c in pairs if c.numel() == f.numel()]
        given, weights = [f for f, _ in pairs], [c for _, c in pairs]
        return list(torch.autograd.grad(given, [*gradients, *inputs], weights, allow_unused=True))


def differentiated_again(*tensors: Tensor | None) -> bool:
    """Whether a backward pass over these is itself recorded."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def gradients_by_torch(
    function: Callable, inputs: Sequence[Tensor | None], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Differentiable gradients of the inputs, through torch operations; None for those that are None.

    `function` maps the inputs to a tensor or a tuple of them, `gradients` are their incoming gradients.
    """
    leaves = [x if x is None or x.requires_grad else x.detach().requires_grad_() for x in inputs]
    present = [x for x in leaves if x is not None]
    found = iter(torch.autograd.grad(function(*leaves), present, gradients, create_graph=True, materialize_grads=True))
    return [None if x is None else next(found) for x in leaves]
