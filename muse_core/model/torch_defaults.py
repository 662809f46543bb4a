"""torch's process-wide defaults as MUSE takes them, whatever the program around it has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def own_defaults(*, gradients: bool | None = None) -> Iterator[None]:
    """Inside, tensors are made in float32 on the CPU unless code says otherwise, without inference mode and autocast;
    afterwards all is as it was, also whether operations without a deterministic implementation are refused. A float64
    default would draw other weights and train in float64, whatever the recipe's precision says.

    ``gradients``: whether they are recorded; None leaves that to the caller. Also a decorator.
    """
    dtype = torch.get_default_dtype()
    refused = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if gradients is not None:
            stack.enter_context(torch.set_grad_enabled(gradients))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(refused, warn_only=warned)
