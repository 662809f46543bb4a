"""Peak memory of making C* in one process: O(N · D) on disk, a chunk of it in memory.

    python plugins/cvfp/scripts/memory.py --tokens 1000000 --width 256

Random token ids; the network is as initialised. Prints resident memory before, at most, and the seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from muse_cvfp.context_fixed import ContextFixed
from muse_cvfp.options import ContextFixedOptions

from muse_core.recipe import read_recipe
from muse_core.training.setup import set_up


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--recipe", default="recipes/cvfp_base.toml")
    given = parser.parse_args()
    checked = read_recipe(given.recipe, [f"model.width={given.width}", 'train.device="cpu"'])
    setup = set_up(checked.recipe, checked.registry)
    setup.model.eval()
    before, start = peak(), time.monotonic()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        stage = ContextFixed(ContextFixedOptions(tokens=given.tokens), setup)
        contexts = stage.batches(Path(folder)).made()
        size = contexts.nbytes
        del contexts
    print(json.dumps({
        "tokens": given.tokens, "width": given.width, "threads": torch.get_num_threads(),
        "mib_before": round(before), "mib_peak": round(peak()), "mib_on_disk": round(size / 2**20),
        "seconds": round(time.monotonic() - start, 1),
    }))


if __name__ == "__main__":
    main()
