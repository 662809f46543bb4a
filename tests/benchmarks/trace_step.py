"""How far one training step goes through the project: files, functions and depth of calls.

    python tests/benchmarks/trace_step.py recipes/phase2_base.toml [--step 3]

Counts the project's own Python functions (``muse_core``, ``muse_kernels`` and the plugins) that one step of the loop
calls on this machine, from the batch to what is recorded; calls made by torch's backward count too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Tracer:
    """Counts between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.functions: set[tuple[str, str]] = set()
        self.depth = self.deepest = 0
        self.path: tuple[str, ...] = ()
        self._stack: list[str] = []

    def _own(self, code) -> str | None:
        name = code.co_filename
        if not name.startswith(str(ROOT)) or "site-packages" in name or "/tests/" in name:
            return None
        return str(Path(name).relative_to(ROOT))

    def profile(self, frame, event, argument) -> None:
        if event not in ("call", "return"):
            return
        file = self._own(frame.f_code)
        if file is None or frame.f_code.co_name.startswith("<"):
            return
        if event == "call":
            self._stack.append(f"{file}:{frame.f_code.co_qualname}")
            self.files[file] += 1
            self.functions.add((file, frame.f_code.co_qualname))
            if len(self._stack) > self.deepest:
                self.deepest, self.path = len(self._stack), tuple(self._stack)
        elif self._stack:
            self._stack.pop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--step", type=int, default=3)
    parser.add_argument("--list", action="store_true", help="the files and the deepest path")
    given = parser.parse_args()

    from muse_core.training import loop

    tracer = Tracer()
    plain = loop.Loop._gradients
    record = loop.Loop._between

    def gradients(self, batch, parameters):
        return plain(self, batch, parameters)

    original = loop.fault_point
    state = {"on": False}

    def point(name, value):
        if name == "batch":
            state["batches"] = state.get("batches", 0) + 1
        return original(name, value)

    class Data:
        def __init__(self, inner):
            self.inner = inner
            self.asked = 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def batch(self, step, *more):
            self.asked += 1
            if self.asked == given.step:
                tracer._stack.clear()
                sys.setprofile(tracer.profile)
                threading.setprofile_all_threads(tracer.profile) if hasattr(threading, "setprofile_all_threads") else None
            return self.inner.batch(step, *more)

    def between(self, *arguments):
        if self.data.asked == given.step:
            sys.setprofile(None)
        return record(self, *arguments)

    loop.fault_point, loop.Loop._between = point, between
    run = loop.Loop.run

    def traced(self):
        self.data = Data(self.data)
        return run(self)

    loop.Loop.run = traced
    from muse_core.cli.run import main as muse_run

    with tempfile.TemporaryDirectory() as folder:
        arguments = [given.recipe, "--run-dir", f"{folder}/run", "--set", f"train.steps={given.step}", "--set",
                     "evaluate.final_tokens=1024", "--set", "train.micro_batch=2", "--set", "train.batch_size=2"]
        try:
            muse_run(arguments, standalone_mode=False)
        finally:
            sys.setprofile(None)
    print(f"{given.recipe}: {len(tracer.files)} files, {len(tracer.functions)} functions, depth {tracer.deepest}")
    if given.list:
        for file, count in sorted(tracer.files.items()):
            print(f"  {count:6} {file}")
        print("\n".join(f"  {'.' * level}{name}" for level, name in enumerate(tracer.path)))


if __name__ == "__main__":
    main()
