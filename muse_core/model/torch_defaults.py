"""torch's process-wide defaults as MUSE takes them, whatever the program around it has set."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch


class _Process:
    """What torch keeps for all threads together: taken by the first that comes in, given back by the last that goes
    out. If each gave back what it had found, one would take float32 from another in the middle of its work, and the
    last would leave float32 behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._found = (torch.float32, False, False)

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._found = (
                    torch.get_default_dtype(),
                    torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled(),
                )
            self._inside += 1
            torch.set_default_dtype(torch.float32)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                dtype, refused, warned = self._found
                torch.set_default_dtype(dtype)
                torch.use_deterministic_algorithms(refused, warn_only=warned)


_process = _Process()


@contextlib.contextmanager
def own_defaults(*, gradients: bool | None = None) -> Iterator[None]:
    """Inside, tensors are made in float32 on the CPU unless code says otherwise, without inference mode and autocast;
    afterwards all is as it was, also whether operations without a deterministic implementation are refused. A float64
    default would draw other weights and train in float64, whatever the recipe's precision says.

    ``gradients``: whether they are recorded; None leaves that to the caller. Also a decorator. Several threads may be
    inside; the default dtype, which is one for all threads, is the program's again when the last has left.
    """
    recorded = torch.is_grad_enabled() if gradients is None else gradients
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # which records gradients
        stack.enter_context(torch.set_grad_enabled(recorded))
        if _made_elsewhere():
            stack.enter_context(torch.device("cpu"))
        if _within_autocast():
            # What autocast has cast is kept until the outermost context ends: weights that an optimiser has changed
            # since would not be read.
            stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
            torch.set_autocast_cache_enabled(False)
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        _process.enter()
        stack.callback(_process.leave)
        yield


def _made_elsewhere() -> bool:
    """Whether tensors are made on another device than the CPU by default."""
    try:
        return torch.get_default_device().type != "cpu"
    except (AssertionError, RuntimeError):  # a default that this machine lacks: torch finds its index by a tensor there
        return True


def _within_autocast() -> bool:
    """Whether a context of autocast is open, also one that is switched off."""
    open_now = torch.autocast_increment_nesting() > 1
    torch.autocast_decrement_nesting()
    return open_now
