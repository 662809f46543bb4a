"""C*, the contexts of a stretch of training text, on disk by digest.

A file under ``contexts/`` of the run's directory holds (windows, N, D) fp32. As with checkpoints it is durable before
its description names it, its size and hash are compared when it is opened, and a quota of the recipe holds for it.

Letters: N tokens of a window, D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from muse_core.contracts import Batch
from muse_core.data.batches import to_device
from muse_core.errors import StorageError
from muse_core.evaluation.held_out import undisturbed
from muse_core.storage.disk import (
    Disk,
    make_directory,
    remove_tree,
    storage_errors,
    sync_directory,
    write_file_atomically,
    write_new_file,
)
from muse_cvfp.model import Cvfp

FORMAT = 1
LOG = logging.getLogger(__name__)


def theta_digest(model: Cvfp) -> str:
    """SHA-256 of everything that contexts depend on: embeddings, c₀ and the context network."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(("embedding.", "context_blocks.")) or name == "start":
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def stored_contexts(
    model: Cvfp, setup: Any, run: Path, identity: dict[str, Any], windows: Iterator[Batch], shape: tuple[int, int, int]
) -> np.ndarray:
    """C* of ``windows`` (batches of rows in their order), memory-mapped, of ``shape`` (rows, N, D): from disk when it
    was made before from equal weights and text, else computed batch by batch and kept. What was kept of other weights
    or text is removed.

    Raises StorageError for a disk or quota that does not hold it.
    """
    described = identity | {"format": FORMAT, "weights": theta_digest(model), "shape": list(shape)}
    name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
    folder, disk = run / "contexts", Disk()
    file, about = folder / f"{name}.f32", folder / f"{name}.json"
    with storage_errors("keep contexts", folder):
        if about.is_file():
            if _sound(file, about, shape):
                return _opened(file, shape)
            LOG.warning("%s: the contexts there are damaged and are made anew", file)
        make_directory(disk, folder)
        for old in sorted(folder.iterdir()):
            remove_tree(disk, old)
        _refuse(4 * shape[0] * shape[1] * shape[2], disk, folder, setup)
        written = write_new_file(disk, file, _computed(model, setup, windows))
        sync_directory(disk, folder)
        text = json.dumps(described | {"size": written.size, "sha256": written.sha256}, sort_keys=True)
        write_file_atomically(disk, about, text.encode())
    return _opened(file, shape)


def _computed(model: Cvfp, setup: Any, windows: Iterator[Batch]) -> Iterator[bytes]:
    """The bytes of each batch's contexts, in the precision in which the model runs."""
    with undisturbed(model), setup.precision():
        for batch in windows:
            there = to_device(batch, setup.precision.device)
            contexts = model.contexts(model.embedded(there.inputs), None, there.tokens)
            yield contexts.to("cpu", torch.float32).contiguous().numpy().tobytes()


def _refuse(size: int, disk: Disk, folder: Path, setup: Any) -> None:
    quota = setup.recipe.checkpoint.quota
    free = disk.free_space(folder)
    if size > min(free, quota or free):
        most = f"checkpoint.quota allows {quota:,}" if quota is not None and quota <= free else f"{free:,} are free"
        raise StorageError(f"{folder}: contexts take {size:,} bytes, and {most} - lower context-fixed.tokens")


def _sound(file: Path, about: Path, shape: tuple[int, int, int]) -> bool:
    try:
        described = json.loads(about.read_text())
        with file.open("rb") as content:
            return described["sha256"] == hashlib.file_digest(content, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _opened(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    return np.memmap(file, dtype="<f4", mode="r", shape=shape)
