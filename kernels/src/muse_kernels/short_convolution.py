"""Short causal convolutions, alone and on the way from projections to queries, keys and values: served by the backend
asked for."""

from torch import Tensor

from .dispatch import implementation, select_backend
from .request import KernelRequest


def short_convolution(
    x: Tensor,
    taps: Tensor,
    heads: int,
    key_width: int,
    *,
    initial: Tensor | None = None,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU of y_t = sum over lags below S of taps_lag x_{t-lag}, tokens of the same document alone; queries and keys
    then divided by their length.

    Args:
        x: projections (B, N, C), N at least 1, with C = H (2K + M): all queries, all keys, all values.
        taps: (S, C), one vector of gains a lag.
        heads, key_width: H and K.
        initial: the S - 1 inputs before the first token (B, S - 1, C), zero where they belong to an earlier document;
            None is zero.
        resets: (B, N) bool, true where a document starts.
        backend: "auto", "triton", "native", "torch" or "reference".

    Returns query and key (B, N, H, K) of length 1 and value (B, N, H, M), in the dtype of x. Gradients of any
    order to x, taps and initial. ValueError names the argument and the shapes that do not fit. Source: mathematics §3.
    """
    request = KernelRequest(
        "short_convolution",
        x.device.type,
        str(x.dtype).removeprefix("torch."),
        {"key": key_width, "span": len(taps)},
        frozenset({"resets"}) if resets is not None else frozenset(),
    )
    function = implementation("short_convolution", select_backend(request, backend).backend)
    return function(x, taps, heads, key_width, initial=initial, resets=resets)


def causal_convolution(
    x: Tensor, taps: Tensor, *, initial: Tensor | None = None, resets: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """y_t = sum over lags below S of taps_lag x_{t-lag}, each channel by itself, tokens of the same document alone.

    Args:
        x: (B, N, C), N at least 1.
        taps: (S, C), one vector of gains a lag.
        initial: the S - 1 inputs before the first token (B, S - 1, C), zero where they belong to an earlier document;
            None is zero.
        resets: (B, N) bool, true where a document starts.
        backend: "auto", "triton", "torch" or "reference".

    Returns y (B, N, C) in the dtype of x. Gradients of any order to x, taps and initial. ValueError names the argument
    and the shapes that do not fit.
    """
    request = KernelRequest(
        "causal_convolution",
        x.device.type,
        str(x.dtype).removeprefix("torch."),
        {"span": len(taps)},
        frozenset({"resets"}) if resets is not None else frozenset(),
    )
    function = implementation("causal_convolution", select_backend(request, backend).backend)
    return function(x, taps, initial=initial, resets=resets)
