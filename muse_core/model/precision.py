"""Device and precision of a run."""

from __future__ import annotations

import contextlib

import attrs
import torch

from muse_core.errors import RecipeError


@attrs.frozen(kw_only=True)
class Precision:
    """Where and in which dtype the model computes. Parameters and optimiser state are fp32 in either."""

    device: torch.device
    autocast: bool
    """Matrix products in bf16."""

    @property
    def dtype(self) -> str:
        """Name of the dtype that kernels receive."""
        return "bfloat16" if self.autocast else "float32"

    def __call__(self) -> contextlib.AbstractContextManager[object]:
        """A context for the forward pass."""
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which matrix products of x are computed: autocast's for float32, its own otherwise."""
    device = x.device.type
    if x.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def lowered(x: torch.Tensor) -> torch.Tensor:
    """x as autocast would give it to matrix products, cast once for all that read it; x itself without autocast."""
    return x.to(product_dtype(x))


def choose_device(name: str, where: str = "train.device") -> torch.device:
    """``auto`` takes the first GPU if there is one. Raises RecipeError naming ``where`` it was asked for and what
    exists."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"{where}: {name!r} is not a valid device; write auto, cpu, cuda or cuda:<index>") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        for_once = ", or give --device cpu" if where == "train.device" else ""
        raise RecipeError(f"{where}: {name!r} was asked for, but torch sees no GPU here; write cpu or auto{for_once}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"{where}: {name!r} does not exist; torch sees {torch.cuda.device_count()} GPU(s)")
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"{where}: {name!r} is not supported; write auto, cpu, cuda or cuda:<index>")
    return device


def computes_bf16(device: torch.device) -> bool:
    """Whether the processor has bf16 matrix instructions, so that autocast is faster and not slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def choose_precision(device: torch.device, precision: str) -> Precision:
    """``precision`` is auto, fp32 or bf16, as in the recipe."""
    autocast = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    return Precision(device=device, autocast=autocast)
