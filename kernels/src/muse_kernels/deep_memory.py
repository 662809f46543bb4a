"""Deep memory: a small network a head that learns while it reads; served by the backend asked for."""

from torch import Tensor

from .arguments import checks_values
from .deep_memory_arguments import DeepMemoryCall, DeepMemoryState, check_deep_memory
from .dispatch import implementation, select_backend
from .request import KernelRequest


def deep_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rate: Tensor,
    log_momentum: Tensor | None,
    log_decay: Tensor,
    weights: Tensor,
    *,
    initial: DeepMemoryState | None = None,
    resets: Tensor | None = None,
    chunk: int = 16,
    offset: int = 0,
    window: int = 1,
    orthogonalise: bool = True,
    recompute: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, DeepMemoryState]:
    """Weights W of a network f that tokens train to answer k_t by v_t, read once a chunk is complete.

    f(x) = x + W_1 (SiLU(W_2 x) * W_3 x), or W x of a linear memory. Token t, with W the weights at the start of the
    chunk that t lies in:
        o_t = f(q_t; W)
        u_t = gradient in W of 1/2 sum_{t-c < j <= t} r_j ||f(k_j; W) - v_j||^2, tokens of the same document alone
        S_t = m_t S_{t-1} + u_t
    and at the end of the chunk, with a_t = e^{log_decay_t} and, over its tokens from zero, P_t = a_t P_{t-1} + S_t and
    p_t = a_t p_{t-1} + r_t:
        W <- (prod a_t) W - P                        without `orthogonalise`: the rule of Titans in chunks
        W <- (prod a_t) W - p NS5(S)                 with it, for each matrix of W apart
    NS5 divides by the Frobenius norm and takes five Newton-Schulz steps (3.4445, -4.775, 2.0315): singular values come
    to lie in about [0.68, 1.13]. So o_t depends on q_t and on the tokens of chunks that end before t, never on those of
    its own chunk. Chunks are counted in the stream, not in the document. At a reset W is `weights` again, S, P and p
    are zero and the window is empty, for this token's own reading too; what the chunk held of the earlier document is
    dropped.

    Args:
        query, key: q and k, (B, N, H, K).
        value: v, (B, N, H, M); M = K beside a gated memory.
        rate: r >= 0, (B, N, H): weight of the token's loss and, orthogonalised, length of its step.
        log_momentum: log m <= 0, (B, N, H); None is m = 0.
        log_decay: log a <= 0, (B, N, H).
        weights: what a stream and a document start with, (H, 3, K, E): W_2 and W_3 transposed, and W_1; or
            (H, 1, K, M) of a linear memory.
        initial: the `final` of an earlier call with the same options; None starts a stream.
        resets: (B, N) bool; a document starts here.
        chunk: tokens of a chunk. Part of the model.
        offset: stream position of token 0, modulo `chunk`.
        window: c, tokens of a window. Windows reach into earlier chunks, at the weights of the present one.
        orthogonalise: take NS5 of the momentum. Gradients through many such chunks grow without bound.
        recompute: of how many chunks one state is kept for the backward pass; the others are computed again.
        backend: "auto", "triton", "native", "torch" or "reference". On a GPU triton refuses `orthogonalise`.

    Returns (output, final): (B, N, H, M) in the dtype of query, key and value, and the state after the last token,
    float32, or float64 where any input is. Gradients reach every tensor, through all chunks. ValueError names the
    argument and the shapes that do not fit. Source: mathematics §3.
    """
    call = DeepMemoryCall(
        *(query, key, value, rate, log_momentum, log_decay, weights),
        *(initial, resets, chunk, offset % max(chunk, 1), window, orthogonalise, recompute),
    )
    layout = check_deep_memory(call)
    if checks_values():
        _check_values(call)
    double = str(layout.state_dtype) == "torch.float64"
    request = KernelRequest(
        "deep_memory",
        query.device.type,
        "float64" if double else str(layout.output_dtype).removeprefix("torch."),
        {"key": layout.key_width, "hidden": layout.hidden, "matrices": layout.matrices},
        frozenset({"gradient", *(["resets"] if resets is not None else []), *(["orthogonalise"] * orthogonalise)}),
    )
    function = implementation("deep_memory", select_backend(request, backend).backend)
    return function(
        *(query, key, value, rate, log_momentum, log_decay, weights),
        initial=initial,
        resets=resets,
        chunk=chunk,
        offset=offset,
        window=window,
        orthogonalise=orthogonalise,
        recompute=recompute,
    )


def _check_values(call: DeepMemoryCall) -> None:
    for name in ("query", "key", "value", "rate", "log_momentum", "log_decay", "weights"):
        tensor = getattr(call, name)
        if tensor is not None and not tensor.isfinite().all():
            raise ValueError(f"deep_memory: {name} holds values that are not finite")
        if name.startswith("log_") and tensor is not None and (tensor > 0).any():
            raise ValueError(f"deep_memory: {name} must be <= 0, its largest is {tensor.max().item():g}")
    if (call.rate < 0).any():
        raise ValueError(f"deep_memory: rate must be >= 0, its least is {call.rate.min().item():g}")
