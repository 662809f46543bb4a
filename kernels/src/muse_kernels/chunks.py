"""Tokens in chunks."""

from torch import Tensor
from torch.nn import functional as F


def in_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, N, H, ...) to (B, H, n, C, ...), zeros behind the last token up to a whole chunk of C."""
    x = x.transpose(1, 2)
    padding = -x.shape[2] % chunk
    if padding:
        x = F.pad(x, (0, 0) * (x.ndim - 3) + (0, padding))
    return x.unflatten(2, (-1, chunk))
