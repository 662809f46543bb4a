"""``muse doctor``: versions, devices, kernel backends and why each is or isn't available, plugins and their faults."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muse_core.cli.errors import guarded
from muse_core.cli.printed import paragraph
from muse_core.cli.threads import import_numpy

if TYPE_CHECKING:
    from muse_core.plugins import Registered, Registry

DISTRIBUTIONS = ("muse-core", "muse-kernels", "torch", "triton", "numpy", "datasets", "tokenizers", "safetensors",
                 "attrs", "cattrs", "pluggy")
SLOW = 1.0
"""Seconds of import after which a plugin is named."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(as_json: bool) -> None:
    """Say what this machine can run: versions, optional packages, folders and their free space, devices, kernel
    backends, plugins. Imports torch."""
    with guarded():
        import_numpy()
        found = examine()
        if as_json:
            import json

            click.echo(json.dumps(found, indent=2, ensure_ascii=False))
            return
        for part in ("versions", "extras", "folders", "devices", "processes", "kernels"):
            click.echo(click.style(part, bold=True))
            for name, text in found[part].items():
                click.echo(paragraph(text, first=f"  {name:<24} ", rest=27 * " "))
        click.echo(click.style("plugins", bold=True))
        click.echo(f"  {found['components']} components of {found['distributions']} distributions")
        for line in (*found["slow"], *found["problems"]):
            click.echo(paragraph(line, first="  ", rest="      "))


def examine() -> dict[str, Any]:
    """Everything that the command prints."""
    from muse_core.plugins import load_plugins

    registry = load_plugins(strict=False)
    devices = _devices()
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in DISTRIBUTIONS}},
        "extras": _extras(),
        "folders": _folders(),
        "devices": devices,
        "processes": _processes(),
        "kernels": {
            row.reference: text
            for row in registry.rows("kernel backend")
            for text in [availability(row, ("cpu", "cuda") if "cuda:0" in devices else ("cpu",))]
        },
        "components": len(registry.rows()),
        "distributions": len({row.distribution for row in registry.rows()}),
        "slow": slow_imports(registry),
        "problems": [str(problem) for problem in registry.problems],
    }


def slow_imports(registry: Registry, limit: float = SLOW) -> list[str]:
    """Plugins whose import held up every listing, one line each."""
    return [
        f"{loaded.plugin.label}: its import took {loaded.seconds:.1f} s - import heavy modules where they are used"
        for loaded in registry.plugins if loaded.seconds > limit
    ]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _extras() -> dict[str, str]:
    """Optional packages of muse-core: there, or how to get them."""
    from packaging.requirements import Requirement

    asked: dict[str, list[str]] = {}
    for line in metadata.requires("muse-core") or ():
        one = Requirement(line)
        for extra in metadata.metadata("muse-core").get_all("Provides-Extra") or ():
            if one.marker is not None and not one.marker.evaluate({"extra": ""}) and one.marker.evaluate(
                {"extra": extra}
            ):
                asked.setdefault(extra, []).append(one.name)
    return {
        extra: ", ".join(f"{name} {_version(name)}" for name in names)
        + (f" - pip install 'muse-core[{extra}]'" if "not installed" in map(_version, names) else "")
        for extra, names in asked.items()
    }


def _folders() -> dict[str, str]:
    """Where encoded text and runs go, and the room that is there."""
    from muse_core.data.sources import cache_folder
    from muse_core.errors import DataError

    try:
        cache = cache_folder()
    except DataError as error:
        return {"encoded text": str(error)}
    return {"encoded text": _room(cache), "runs": _room(Path.cwd() / "runs")}


def _room(folder: Path) -> str:
    """The folder with the free space below its nearest part that exists."""
    there = next(one for one in (folder, *folder.parents) if one.is_dir())
    writable = "" if os.access(there, os.W_OK) else ", which this user may not write to"
    return f"{folder}, {shutil.disk_usage(there).free / 2**30:,.1f} GiB free{writable}"


def _devices() -> dict[str, str]:
    import torch

    from muse_core.model.precision import computes_bf16

    def bf16(device: torch.device) -> str:
        return "bf16" if computes_bf16(device) else "no bf16 instructions, so precision auto is fp32"

    cpu = torch.device("cpu")
    threads = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores"
    found = {"cpu": f"{platform.processor() or platform.machine()}, {threads}, {bf16(cpu)}"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        device = torch.device("cuda", index)
        found[f"cuda:{index}"] = f"{properties.name}, {memory}, {bf16(device)}{_products(device)}"
    if len(found) == 1:
        found["cuda"] = "none; " + (
            "torch sees no GPU" if torch.version.cuda or torch.version.hip else "this torch is built for the CPU only")
    return found


def _products(device: Any) -> str:
    """What is wrong with matrix products of a GPU, behind a semicolon; nothing where they are right."""
    from muse_core.model import products

    try:
        wrong = products.wrong_product(device)
    except RuntimeError as error:  # as where others have its memory
        return f"; products could not be tried ({str(error).splitlines()[0]})"
    return f"; {wrong}" if wrong else ""


def _processes() -> dict[str, str]:
    """What several processes of one run would talk through."""
    import torch
    from torch import distributed

    if not distributed.is_available():
        missing = "none: this torch is built without torch.distributed"
        return {"nccl": missing, "gloo": missing}
    nccl = "none: this torch is built without it, so that several processes run on a CPU only"
    if distributed.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "no GPU to use it on"
    gloo = "available" if distributed.is_gloo_available() else "none: this torch is built without it"
    return {"nccl": nccl, "gloo": gloo}


def availability(row: Registered, devices: Sequence[str]) -> str:
    """For each device: the operations that a backend serves there, or why it serves none."""
    from muse_core.building import construct, registered_use
    from muse_core.contracts import KernelRequest
    from muse_core.errors import MuseError

    try:
        backend = construct(registered_use(row), None)
        operations = sorted(backend.operations())
        parts = []
        for device in devices:
            reasons = {one: backend.refuse(KernelRequest(one, device, "float32")) for one in operations}
            served = [one for one, reason in reasons.items() if reason is None]
            refused = "; ".join(dict.fromkeys(reason for reason in reasons.values() if reason is not None))
            parts.append(f"{device}: {', '.join(served) or 'nothing'}{f' ({refused})' if refused else ''}")
        return " | ".join(parts)
    except MuseError as error:
        return f"unusable: {error}"
    except Exception as error:
        return f"unusable: asking it raised {type(error).__name__}: {error}"
