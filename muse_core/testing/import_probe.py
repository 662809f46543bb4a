"""What importing plugins does, observed in a process of its own: ``python -m muse_core.testing.import_probe NAME …``.

For each module of a plugin it forks twice. The first child imports the module alone and lists the heavy modules that
came along; the second, from a parent that has torch, imports it and its implementations and lists the global settings
that changed. The report is one JSON object by module on stdout.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

HEAVY = ("torch", "numpy.random", "datasets", "matplotlib", "transformers")
TORCHS_OWN = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Variables of the environment that torch's compiler sets when it first looks for its cache, whoever calls it."""


def settings() -> dict[str, str]:
    """Global settings of the interpreter, and of torch when it is imported."""
    import logging

    found: dict[str, Any] = {
        "os.environ": {name: value for name, value in os.environ.items() if name not in TORCHS_OWN},
        "working directory": os.getcwd(),
        "sys.path": list(sys.path),
        "sys.excepthook": sys.excepthook.__qualname__,
        "warning filters": len(warnings.filters),
        "root log handlers": len(logging.getLogger().handlers),
        "root log level": logging.getLogger().level,
        "signal handlers": [repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "recursion limit": sys.getrecursionlimit(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found |= {
            "torch default dtype": torch.get_default_dtype(),
            "torch default device": torch.get_default_device(),
            "torch threads": torch.get_num_threads(),
            "torch gradients": torch.is_grad_enabled(),
            "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "torch matmul precision": torch.get_float32_matmul_precision(),
            # Not its sum: of two counters within it one goes up when the other goes down.
            "torch random state": hashlib.sha256(torch.random.get_rng_state().numpy().tobytes()).hexdigest(),
            "torch anomaly mode": torch.is_anomaly_enabled(),
        }
    return {name: str(value) for name, value in found.items()}


def in_a_child(work: Callable[[], Any]) -> Any:
    """The JSON result of ``work`` in a forked process; ``{"raised": …}`` when it raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - SystemExit of a plugin must become a line of the report
            result = {"raised": f"{type(error).__name__}: {error}"}
        with os.fdopen(writer, "w") as stream:
            json.dump(result, stream)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text)


def heavy_modules(module: str) -> dict[str, list[str]]:
    """Heavy modules that importing brings along, also by reading the rows."""
    _rows(module)
    return {"heavy": [name for name in HEAVY if name in sys.modules]}


def changed_settings(module: str) -> dict[str, list[str]]:
    """Names of settings that differ after importing the module and every implementation it registers."""
    from muse_core.component import load

    before = settings()
    for row in _rows(module):
        load(row.implementation)
    after = settings()
    return {"changed": [name for name, value in before.items() if after[name] != value]}


def _rows(module: str) -> list[Any]:
    from muse_core.hookspecs import HOOK_OF_KIND

    plugin = importlib.import_module(module)
    return [row for hook in HOOK_OF_KIND.values() if hasattr(plugin, hook) for row in getattr(plugin, hook)()]


def main() -> None:
    modules = sys.argv[1:]
    report = {module: in_a_child(lambda: heavy_modules(module)) for module in modules}  # noqa: B023
    import torch  # noqa: F401 - the children below start with it

    for module in modules:
        report[module] |= in_a_child(lambda: changed_settings(module))  # noqa: B023
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
