"""What every backend checks and derives from its arguments before computing, by operation.

Shapes: B batch, N tokens or sites, H heads, K key width, M value width, `lead` any leading dimensions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .refusals import require_one_process

_ENABLED = ContextVar("muse_kernels_debug", default=False)


@contextmanager
def debug(enabled: bool = True) -> Iterator[None]:
    """Within the block, operations check values too: Im energy > 0, log_decay <= 0, everything finite.

    >>> from muse_kernels import debug
    >>> with debug():
    ...     pass  # call operations here; compiled code skips the checks
    """
    token = _ENABLED.set(enabled)
    try:
        yield
    finally:
        _ENABLED.reset(token)


def checks_values() -> bool:
    """Whether this call should check values; always False in code under torch.compile."""
    return not torch.compiler.is_compiling() and _ENABLED.get()


RESOLVENT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128)
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
    require_one_process(operation, group)
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
        _check_resolvent_values(operation, given, energy)
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
        if x.dtype not in RESOLVENT_DTYPES:
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


def _check_resolvent_values(operation: str, given: dict[str, Tensor], energy: Tensor) -> None:
    for name, x in given.items():
        if not torch.isfinite(x).all():
            raise ValueError(f"{operation}: {name} has values that are not finite")
    if not (energy.imag > 0).all():
        raise ValueError(f"{operation}: Im energy must be positive, its minimum is {energy.imag.min().item():.3e}")


RULES = ("hebbian", "delta")
READS = ("after", "before")
FAST_WEIGHTS_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layout:
    """Sizes and dtypes of one call: B batch, N tokens, H heads, K key width, M value width."""

    batch: int
    tokens: int
    heads: int
    key_width: int
    value_width: int
    output_dtype: torch.dtype
    """Of the output: the promotion of query, key and value."""
    state_dtype: torch.dtype
    """Of the arithmetic and the carried state: float64 where any input is, else float32."""

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(B, H, K, M)."""
        return (self.batch, self.heads, self.key_width, self.value_width)


class Call(NamedTuple):
    """The arguments of one call; `muse_kernels.fast_weights` says what they are."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    rate: Tensor
    rule: str
    initial: Tensor | None
    resets: Tensor | None
    read: str
    chunk: int


def checked(compute: Callable[[Call, Layout], tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A backend's `fast_weights`: `compute` behind the one signature and the one check that all backends have.

    The result has the name and the docstring of `compute`.
    """

    def fast_weights(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        rate: Tensor,
        *,
        rule: str = "hebbian",
        initial: Tensor | None = None,
        resets: Tensor | None = None,
        read: str = "after",
        chunk: int = 64,
        group=None,
    ) -> tuple[Tensor, Tensor]:
        call = Call(query, key, value, log_decay, rate, rule, initial, resets, read, chunk)
        return compute(call, check_fast_weights(call, group))

    fast_weights.__name__, fast_weights.__qualname__ = compute.__name__, compute.__qualname__
    fast_weights.__module__, fast_weights.__doc__ = compute.__module__, compute.__doc__
    return fast_weights


def check_fast_weights(call: Call, group=None) -> Layout:
    """The layout of a call; ValueError naming the argument and the shapes where they do not fit."""
    query, key, value, log_decay, rate, rule, initial, resets, read, chunk = call
    require_one_process("fast_weights", group)
    if rule not in RULES:
        raise ValueError(f"fast_weights: rule must be one of {RULES}, got {rule!r}")
    if read not in READS:
        raise ValueError(f"fast_weights: read must be one of {READS}, got {read!r}")
    if chunk < 1:
        raise ValueError(f"fast_weights: chunk must be at least 1, got {chunk}")
    if query.ndim != 4:
        raise ValueError(f"fast_weights: query must be (B, N, H, K), got {tuple(query.shape)}")
    batch, tokens, heads, key_width = query.shape
    if tokens < 1:
        raise ValueError(f"fast_weights: query needs at least one token, got {tuple(query.shape)}")
    if value.ndim != 4:
        raise ValueError(f"fast_weights: value must be (B, N, H, M), got {tuple(value.shape)}")
    value_width = value.shape[-1]

    expected = {
        "key": (key, "(B, N, H, K)", (batch, tokens, heads, key_width)),
        "value": (value, "(B, N, H, M)", (batch, tokens, heads, value_width)),
        "log_decay": (log_decay, "(B, N, H)", (batch, tokens, heads)),
        "rate": (rate, "(B, N, H)", (batch, tokens, heads)),
        "initial": (initial, "(B, H, K, M)", (batch, heads, key_width, value_width)),
        "resets": (resets, "(B, N)", (batch, tokens)),
    }
    for name, (tensor, letters, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"fast_weights: {name} must be {letters} = {shape} beside query {tuple(query.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.device != query.device:
            raise ValueError(f"fast_weights: {name} is on {tensor.device}, query on {query.device}")

    if resets is not None and resets.dtype != torch.bool:
        raise ValueError(f"fast_weights: resets must be bool, got {resets.dtype}")
    floats = {"query": query, "key": key, "value": value, "log_decay": log_decay, "rate": rate, "initial": initial}
    dtypes = {name: tensor.dtype for name, tensor in floats.items() if tensor is not None}
    for name, dtype in dtypes.items():
        if dtype not in FAST_WEIGHTS_DTYPES:
            raise ValueError(f"fast_weights: {name} must be bfloat16, float32 or float64, got {dtype}")
    return Layout(
        batch,
        tokens,
        heads,
        key_width,
        value_width,
        output_dtype=reduce(torch.promote_types, (query.dtype, key.dtype, value.dtype)),
        state_dtype=reduce(torch.promote_types, dtypes.values(), torch.float32),
    )


def in_double(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is of double precision, and so is what they are computed in."""
    return any(x is not None and x.dtype in (torch.float64, torch.complex128) for x in tensors)


def check_gated_norm(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, behind: Tensor | None = None
) -> torch.dtype:
    """The dtype of the result; ValueError naming the argument and the shapes where they do not fit."""
    if x.ndim < 1 or not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"gated_norm: x must be floating or complex (..., F), got {x.dtype} {tuple(x.shape)}")
    features = x.shape[-1] * (2 if x.is_complex() else 1)
    if weight is not None and tuple(weight.shape) != (features,):
        raise ValueError(f"gated_norm: weight must be ({features},) beside x {tuple(x.shape)}, {tuple(weight.shape)}")
    if gate is not None and gate.shape != x.shape:
        raise ValueError(f"gated_norm: gate must be {tuple(x.shape)} as x, got {tuple(gate.shape)}")
    if behind is not None and (behind.shape[:-1] != x.shape[:-1] or behind.is_complex()):
        raise ValueError(
            f"gated_norm: behind must be real, {(*x.shape[:-1], 'E')} beside x {tuple(x.shape)}, got {behind.dtype} "
            f"{tuple(behind.shape)}"
        )
    return x.real.dtype if gate is None else gate.dtype


SHORTEST = 1e-6
"""Length below which a query or key is divided by this instead of its length."""


def unit_length(x: Tensor, norm: Callable | None = None) -> Tensor:
    """x (..., K) over its length along the last axis, or over `SHORTEST` where it is shorter; in the dtype of x.

    Plain torch, whatever backend is bound. Computed in float32 at least: a square overflows in float16 and loses bits
    in bfloat16. With `norm`, a backend's `gated_norm`, in one pass, and over the root of ‖x‖² + `SHORTEST`².
    """
    computed = torch.promote_types(x.dtype, torch.float32)
    if norm is not None:
        width = x.shape[-1]
        return norm(x, x.new_full((width,), width**-0.5, dtype=computed), None, epsilon=SHORTEST**2 / width)
    return F.normalize(x.to(computed), dim=-1, eps=SHORTEST).to(x.dtype)


def documents(resets: Tensor | None) -> Tensor | None:
    """(B, N) int32: which document a token belongs to, counted from the carried one (0)."""
    return None if resets is None else resets.cumsum(1, dtype=torch.int32)
