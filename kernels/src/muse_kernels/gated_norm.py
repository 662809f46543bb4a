"""Root mean square normalisation and a gate in one pass: served by the backend asked for."""

from torch import Tensor

from .arguments import in_double
from .dispatch import implementation, select_backend
from .request import KernelRequest


def gated_norm(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, *, epsilon: float = 1e-6, behind: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:  # fmt: skip
    """x over its root mean square along the last axis, times a gain, times SiLU of a gate.

    Args:
        x: (..., F), real or complex; complex numbers count as F real parts followed by F imaginary parts.
        weight: the gain, (F,), or (2F,) for complex x; None leaves x as it is.
        gate: what SiLU opens, (..., F) real, the same for both parts of a complex number; None opens fully.
        epsilon: added to the mean square.
        behind: (..., E) real, more features that are laid behind the others as they are, so that a product reads both.
        backend: "auto", "triton", "native", "torch" or "reference".

    Returns (..., F) or, for complex x, (..., 2F), and E more with `behind`, in the gate's dtype, in x's real one
    without a gate; computed in float64 where x, the gain or the gate is of double precision, otherwise in float32.
    ValueError names the argument and the shapes that do not fit. Source: Zhang and Sennrich 2019.
    """
    request = KernelRequest(
        "gated_norm",
        x.device.type,
        "float64" if in_double(x, weight, gate) else "float32",
        {"features": x.shape[-1] * (2 if x.is_complex() else 1)},
    )
    return implementation("gated_norm", select_backend(request, backend).backend)(
        x, weight, gate, epsilon=epsilon, behind=behind
    )
