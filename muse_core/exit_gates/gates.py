"""The gates in their order, and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muse_core import __version__
from muse_core.errors import Halted, MuseError
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.chunk import fast_weight_chunk
from muse_core.exit_gates.findings import Finding, Outcome, failed
from muse_core.exit_gates.health import finite_steps, perplexity_followed
from muse_core.exit_gates.needles import memory_capacity, memory_recall, needle_overhead
from muse_core.exit_gates.persistent import norm_persistent
from muse_core.exit_gates.rollback import forced_spike
from muse_core.exit_gates.shards import shard_boundaries
from muse_core.storage.canonical_json import spelled
from muse_core.storage.disk import Disk, storage_errors, write_file_atomically
from muse_core.training.stop import Interrupted

GATES: dict[str, Callable[[Bench], Finding]] = {
    "fast-weight chunk": fast_weight_chunk,
    "finite steps": finite_steps,
    "ppl_delta": perplexity_followed,
    "needle overhead": needle_overhead,
    "memory capacity": memory_capacity,
    "memory recall": memory_recall,
    "norm_persistent": norm_persistent,
    "forced spike": forced_spike,
    "shard boundaries": shard_boundaries,
}
"""Name → gate. The first that asks for the training run pays for it."""

Hear = Callable[[int, str, Finding | None, float], None]


def run_gates(bench: Bench, hear: Hear, gates: dict[str, Callable[[Bench], Finding]] = GATES) -> dict[str, Any]:
    """Every gate in turn; ``hear(number, name, finding, seconds)`` is called before each (finding None) and after.

    Returns the report, which is also written to ``gates.json`` in the bench's folder. What a gate itself breaks on, a
    recipe that cannot be built or a full disk, is that gate's failure. Raises Interrupted.
    """
    entries = []
    for number, (name, gate) in enumerate(gates.items(), 1):
        hear(number, name, None, 0.0)
        started = time.monotonic()
        try:
            finding = gate(bench)
        except Interrupted:
            raise
        except MuseError as error:
            finding = failed(type(error).__name__, str(error))
        seconds = time.monotonic() - started
        hear(number, name, finding, seconds)
        entries.append({
            "gate": name, "outcome": finding.outcome.value, "figure": finding.figure, "reason": finding.reason,
            "seconds": round(seconds, 3), "numbers": dict(finding.numbers),
        })
    setup = bench.setup
    report = {
        "recipe": setup.recipe.name,
        "seed": setup.recipe.seed,
        "steps": bench.steps,
        "device": str(setup.precision.device),
        "precision": setup.precision.dtype,
        "muse_core": __version__,
        "passed": all(entry["outcome"] != Outcome.FAIL for entry in entries),
        "gates": entries,
    }
    target = Path(bench.folder) / "gates.json"
    told = json.dumps(spelled(report), indent=2, ensure_ascii=False, allow_nan=False)
    with storage_errors("write", target):
        write_file_atomically(Disk(), target, f"{told}\n".encode())
    return report


def require(report: dict[str, Any]) -> None:
    """Raises Halted naming the gates that failed."""
    bad = [f"{entry['gate']}: {entry['reason']}" for entry in report["gates"] if entry["outcome"] == Outcome.FAIL]
    if bad:
        raise Halted(f"{len(bad)} of {len(report['gates'])} gates failed:\n  " + "\n  ".join(bad))
