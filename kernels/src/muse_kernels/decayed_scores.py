"""Scores and decays within the chunks of a memory whose channels decay each at its own rate."""

from torch import Tensor

from .decayed_arguments import DecayedScores, computed_in
from .dispatch import implementation, select_backend
from .request import KernelRequest


def decayed_scores(
    query: Tensor,
    key: Tensor,
    log_decay: Tensor,
    *,
    probe: Tensor | None = None,
    insert: Tensor | None = None,
    resets: Tensor | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> DecayedScores:
    """What chunks of W_t = diag(e^{g_t}) W_{t-1} + b_t (p_t^T W_{t-1}) + k_t v_t^T, read by q_t^T W_t, need before any
    W: how each token that reads weights each that was written before, and what decays from and to the chunk's ends.

    Args:
        query, key: q and k (B, N, H, K), N and K at least 1.
        log_decay: g <= 0 (B, N, H, K), also very fast: no exponent is above zero.
        probe, insert: p and b (B, N, H, K); None for a memory of which nothing is taken out.
        resets: (B, N) bool, true where a document starts, which forgets W; a token sees its own document only.
        chunk: tokens of a chunk, a power of two up to 64.
        backend: "auto", "triton", "torch" or "reference".

    Returns `DecayedScores`, in float64 where any argument is of double precision, otherwise in float32. Gradients of
    any order to all but resets. ValueError names the argument and the shapes that do not fit, or within
    `muse_kernels.debug` the values. Sources: Yang and others 2023 (arXiv:2312.06635), section 4; Kimi Team 2025
    (arXiv:2510.26692).
    """
    double = computed_in(query, key, log_decay, probe, insert).itemsize == 8
    request = KernelRequest(
        "decayed_scores",
        query.device.type,
        "float64" if double else str(query.dtype).removeprefix("torch."),
        {"key": query.shape[-1]},
        frozenset({"gradient"} if resets is None else {"gradient", "resets"}),
    )
    function = implementation("decayed_scores", select_backend(request, backend).backend)
    return function(query, key, log_decay, probe=probe, insert=insert, resets=resets, chunk=chunk)
