"""What is carried from call to call, as real tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def stored(x: Tensor) -> Tensor:
    """Complex (…) → real (…, 2)."""
    return torch.view_as_real(x)


def restored(x: Tensor) -> Tensor:
    """Real (…, 2) → complex (…)."""
    return torch.view_as_complex(x.contiguous())


def last_valid(x: Tensor, before: Tensor | None, valid: Tensor | None) -> Tensor:
    """The entry of each row at its last valid token, or ``before`` (zero if None) where a row has none.

    x (B, N, …), ``before`` (B, …), ``valid`` (B, N) bool with padding on the right; returns (B, …).
    """
    if valid is None:
        return x[:, -1].clone()  # a view would keep all N tokens in memory
    count = valid.sum(dim=1)
    entry = x[torch.arange(x.shape[0], device=x.device), (count - 1).clamp(min=0)]
    before = torch.zeros_like(entry) if before is None else before
    return torch.where((count > 0).view(-1, *(1,) * (entry.ndim - 1)), entry, before)
