"""Hands components the measures of an accepted step that are their own, wherever in the model they are nested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.Sequential)


def update_statistics(model: nn.Module, metrics: Mapping[str, float], progress: float) -> None:
    """Call ``update_statistics`` of every module in ``model`` that has it; see ``contracts.UpdatesStatistics``.

    ``metrics`` are those of the model's output: ``blocks.3.fast-weights/energy`` is the layer's own, and
    ``blocks.3.fast-weights/snr/signal_to_noise`` that of the module ``blocks.3.fast-weights.filters.snr``.
    """
    for name, module in model.named_modules():
        if module is not model and hasattr(module, "update_statistics"):
            own = {}
            for prefix in prefixes(model, name):
                own |= {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
            module.update_statistics(own, progress)


def prefixes(model: nn.Module, name: str) -> Iterator[str]:
    """How the measures of the module ``name`` may begin: by the full name of a module around it, or its own, and by
    its place within that one."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        host, rest = ".".join(parts[:length]), ".".join(parts[length:])
        yield f"{host}/{place_of(model.get_submodule(host), rest)}/" if rest else f"{host}/"


def place_of(host: nn.Module, path: str) -> str:
    """Where a host returns what a module nested in it measures: the module's path, without containers on the way and
    by slashes. ``filters.snr`` gives ``snr`` and ``router`` itself."""
    parts = path.split(".")
    walked = (".".join(parts[: length + 1]) for length in range(len(parts)))
    return "/".join(part for part, way in zip(parts, walked) if not isinstance(host.get_submodule(way), CONTAINERS))
