"""What every backend of the resolvent operations checks and derives from its arguments before computing.

Shapes: N sites, M values a site, `lead` any leading dimensions, broadcast over all arguments.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .debugging import checks_values

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128)
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass(frozen=True)
class Tridiagonal:
    """The arguments of one call, in one precision, each with all its dimensions but not yet expanded.

    diagonal, lower and upper broadcast to (*lead, N) and are real or complex; energy broadcasts to (*lead, 1) and is
    complex; values is (*lead or 1, N, M), real or complex; the carried theta is (*lead,) and the carried y (*lead, M),
    both complex and expanded. Absent ones are None.
    """

    operation: str
    lead: tuple[int, ...]
    sites: int
    diagonal: Tensor
    lower: Tensor
    upper: Tensor
    energy: Tensor
    values: Tensor | None = None
    theta: Tensor | None = None
    applied: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(*lead, N)."""
        return (*self.lead, self.sites)

    @property
    def dtype(self) -> torch.dtype:
        """The complex dtype of the results."""
        return self.energy.dtype


def check_resolvent(
    operation: str, diagonal, lower, upper, energy, *, values=None, initial=None, group=None, keeps_half: bool = False
) -> Tridiagonal:
    """The arguments of a resolvent operation made uniform; ValueError naming the argument and the shapes otherwise.

    bfloat16 and float16 are computed in float32; `keeps_half` leaves `values` of these as they are, for kernels that
    convert what they load. Under `muse_kernels.debug` the values are checked too.
    """
    if group is not None:
        raise NotImplementedError(f"{operation}: context parallelism (group) is not built yet; pass group=None")
    if not isinstance(diagonal, Tensor) or diagonal.ndim < 1 or diagonal.shape[-1] < 1:
        got = tuple(diagonal.shape) if isinstance(diagonal, Tensor) else type(diagonal).__name__
        raise ValueError(f"{operation}: diagonal must be a tensor (..., N) with N >= 1, got {got}")
    theta, applied = _split(operation, initial, applies=values is not None)
    given = {"diagonal": diagonal, "lower": lower, "upper": upper, "energy": energy}
    given |= {"values": values, "initial": theta, "initial[1]": applied}
    given = {name: x for name, x in given.items() if x is not None}
    precision = _precision(operation, given, diagonal)
    kept = keeps_half and isinstance(values, Tensor) and values.dtype in (torch.bfloat16, torch.float16)
    wanted = dict.fromkeys(given, precision) | ({"values": values.dtype} if kept else {})
    given = {name: _convert(operation, name, x, wanted[name], diagonal.device) for name, x in given.items()}

    sites = diagonal.shape[-1]
    trailing = {"energy": 1, "values": 2, "initial": 0, "initial[1]": 1}
    for name in ("lower", "upper"):
        if given[name].shape[-1] not in (1, sites):
            _refuse(operation, name, f"broadcastable to (..., N = {sites})", given[name], diagonal)
    if given["energy"].shape[-1] != 1:
        _refuse(operation, "energy", "broadcastable to (..., 1)", given["energy"], diagonal)
    if values is not None and (given["values"].ndim < 2 or given["values"].shape[-2] != sites):
        _refuse(operation, "values", f"(..., N = {sites}, M)", given["values"], diagonal)
    lead = ()
    for name, x in given.items():
        own = x.shape[: x.ndim - trailing.get(name, 1)]
        try:
            lead = torch.broadcast_shapes(lead, own)
        except RuntimeError:
            _refuse(operation, name, f"with leading dimensions that broadcast with {tuple(lead)}", x, diagonal)
    lead = tuple(lead)

    if theta is not None:
        theta = _state(operation, "initial", given["initial"], lead, precision, diagonal)
    if applied is not None:
        applied = _state(operation, "initial[1]", given["initial[1]"], (*lead, values.shape[-1]), precision, diagonal)
    energy = given["energy"].to(COMPLEX[precision])
    if checks_values():
        _check_values(operation, given, energy)
    return Tridiagonal(
        operation,
        lead,
        sites,
        _align(given["diagonal"], lead, 1),
        _align(given["lower"], lead, 1),
        _align(given["upper"], lead, 1),
        _align(energy, lead, 1),
        None if values is None else _align(given["values"], lead, 2),
        theta,
        applied,
    )


def _split(operation: str, initial, applies: bool):
    if initial is None:
        return None, None
    if not applies:
        if not isinstance(initial, Tensor):
            raise ValueError(f"{operation}: initial must be a tensor theta (...), got {type(initial).__name__}")
        return initial, None
    if not isinstance(initial, (tuple, list)) or len(initial) != 2:
        got = type(initial).__name__
        raise ValueError(f"{operation}: initial must be the pair (theta (...), y (..., M)), got {got}")
    return tuple(initial)


def _precision(operation: str, given: dict, diagonal: Tensor) -> torch.dtype:
    dtypes = []
    for name, x in given.items():
        if not isinstance(x, Tensor):
            continue
        if x.dtype not in DTYPES:
            raise ValueError(f"{operation}: {name} must be floating or complex, got {x.dtype}")
        if x.ndim or x is diagonal:  # as everywhere in torch, a scalar does not raise the precision of tensors
            dtypes.append(REAL.get(x.dtype, x.dtype))
    return reduce(torch.promote_types, dtypes, torch.float32)


def _convert(operation: str, name: str, x, precision: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(x, Tensor):
        if not isinstance(x, (int, float, complex)) or name not in ("lower", "upper", "energy"):
            raise ValueError(f"{operation}: {name} must be a tensor, got {type(x).__name__}")
        return torch.full((1,), x, dtype=COMPLEX[precision] if isinstance(x, complex) else precision, device=device)
    if x.device != device:
        raise ValueError(f"{operation}: {name} is on {x.device}, diagonal on {device}")
    x = x.to(COMPLEX[precision] if x.is_complex() else precision)
    return x.reshape(1) if x.ndim == 0 and name in ("lower", "upper", "energy") else x


def _refuse(operation: str, name: str, wanted: str, got: Tensor, diagonal: Tensor):
    raise ValueError(f"{operation}: {name} must be {wanted}, got {tuple(got.shape)} beside {tuple(diagonal.shape)}")


def _state(operation: str, name: str, x: Tensor, shape: tuple, precision: torch.dtype, diagonal: Tensor) -> Tensor:
    try:
        return x.to(COMPLEX[precision]).expand(shape)
    except RuntimeError:
        _refuse(operation, name, f"broadcastable to {shape}", x, diagonal)


def _align(x: Tensor, lead: tuple[int, ...], trailing: int) -> Tensor:
    """All leading dimensions present, so that expanding is the only step left."""
    return x.reshape((1,) * (len(lead) + trailing - x.ndim) + tuple(x.shape))


def _check_values(operation: str, given: dict[str, Tensor], energy: Tensor) -> None:
    for name, x in given.items():
        if not torch.isfinite(x).all():
            raise ValueError(f"{operation}: {name} has values that are not finite")
    if not (energy.imag > 0).all():
        raise ValueError(f"{operation}: Im energy must be positive, its minimum is {energy.imag.min().item():.3e}")
