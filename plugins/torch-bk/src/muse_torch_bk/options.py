"""Options of the backends. Imports no torch."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class NativeOptions:
    """Recurrences in C on a CPU, compiled by the C compiler found here when they are first asked for (CC names
    another); float32 and float64, gradients of any order."""


@frozen(kw_only=True)
class TorchOptions:
    """Plain torch: no compiler, CPU or GPU, any precision, gradients of any order."""


@frozen(kw_only=True)
class ReferenceOptions:
    """The definitions in float64: slow, what the other backends are compared with."""
