"""How far one training step goes through the project: files, functions and depth of calls.

    python tests/benchmarks/trace_step.py recipes/phase2_base.toml [--list]

Counts the Python functions of the project (``muse_core``, ``muse_kernels`` and the plugins) that one whole step of the
loop calls on this machine, from drawing the batch to the display, on a step that writes no row. ``depth`` counts the
project's own calls on the stack, ``with torch`` every Python frame from the loop's ``run`` on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
STEP = 3


class Tracer:
    """Counts between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.functions: set[tuple[str, str]] = set()
        self.path: tuple[str, ...] = ()
        self.frames = 0
        self._loop: FrameType | None = None

    def start(self) -> None:
        self._loop = sys._getframe(1)
        while self._loop.f_code.co_name != "run":
            self._loop = self._loop.f_back
        threading.setprofile(self.profile)
        sys.setprofile(self.profile)

    def stop(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        own = name_of(frame) if event == "call" else None
        if own is None:
            return
        self.files[own[0]] += 1
        self.functions.add(own)
        path, frames, above = [], 0, frame
        while above is not None and above is not self._loop:
            frames += 1
            if found := name_of(above):
                path.append(":".join(found))
            above = above.f_back
        self.frames = max(self.frames, frames)
        if len(path) > len(self.path):
            self.path = tuple(reversed(path))


def name_of(frame: FrameType) -> tuple[str, str] | None:
    """File and function, for the project's own functions."""
    file, function = frame.f_code.co_filename, frame.f_code.co_qualname
    if not file.startswith(f"{ROOT}/") or "site-packages" in file or "/tests/" in file or "<" in frame.f_code.co_name:
        return None
    return str(Path(file).relative_to(ROOT)), function


def traced(recipe: str, overrides: list[str]) -> Tracer:
    """Train a few steps of a recipe and count those calls that step ``STEP`` makes."""
    from muse_core.cli.run import main
    from muse_core.training.loop import Loop

    tracer, run = Tracer(), Loop.run

    class Data:
        """The run's data, which says when a step begins."""

        def __init__(self, inner: Any):
            self.inner, self.asked = inner, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def batch(self, step: int, *more: Any) -> Any:
            self.asked += 1
            tracer.stop()
            if self.asked == STEP:
                tracer.start()
            return self.inner.batch(step, *more)

    def with_data(self: Any) -> None:
        self.data = Data(self.data)
        run(self)

    Loop.run = with_data
    small = [f"train.steps={STEP + 2}", "train.log_every=1000", "train.batch_size=2", "evaluate.final_tokens=1024"]
    with tempfile.TemporaryDirectory() as folder:
        settings = [part for text in (*small, *overrides) for part in ("--set", text)]
        main([recipe, "--run-dir", f"{folder}/run", *settings], standalone_mode=False)
    return tracer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--list", action="store_true", help="the files and the deepest path")
    given = parser.parse_args()
    tracer = traced(given.recipe, given.set)
    print(
        f"{given.recipe}: {len(tracer.files)} files, {len(tracer.functions)} functions, depth {len(tracer.path)}, "
        f"with torch {tracer.frames}"
    )
    if given.list:
        for file, count in sorted(tracer.files.items()):
            print(f"  {count:6} {file}")
        print("\n".join(f"  {'.' * level}{name}" for level, name in enumerate(tracer.path)))


if __name__ == "__main__":
    main()
