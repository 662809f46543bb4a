"""Training steps of two recipes on one CPU thread, in turns, here and in another checkout.

    python tests/benchmarks/cpu_step.py [--steps 12] [--against CHECKOUT [--python PYTHON]] [--set KEY=VALUE]
        [--set-here KEY=VALUE] [RECIPE OTHER]

Defaults: recipes/phase2_base.toml against recipes/transformer_base.toml. A step is one turn of the loop itself: batch,
forward, backward, monitors, clip, update, the numbers read; no probe, evaluation or checkpoint. Both recipes are
trained by one process, one step each in turns, so that other load on the machine reaches both. With ``--against``
further processes, one for a recipe, do the same with the code of another checkout and its recipes of these names, in
turns with this one: with the plugins that are installed here, or by ``--python``, the interpreter of an environment in
which that checkout is installed with its own plugins, which may be of any version since 0.1; ``--set-here`` is for this
checkout alone. Printed are medians of wall clock and of processor time, and the median, the smallest and the largest of
the ratios of neighbouring steps. Processor time leaves out the time that other processes have the core. Two recipes in
one process can slow each other down: name one to compare checkouts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WARM = 2
"""Steps of each that are not counted."""
Step = tuple[float, float]
"""Seconds of the wall clock and of the processor."""


@contextlib.contextmanager
def stepper(recipes: Sequence[str], overrides: Sequence[str]) -> Iterator[tuple[list[int], Callable[[int], Step]]]:
    """Tokens of a step of each recipe, and what trains recipe number i by one step."""
    from muse_core.recipe import read_recipe
    from muse_core.selftest.promises.runs import loop_of
    from muse_core.training.loop import Loop

    # What happens between steps is no part of one; True ends the loop after its step.
    Loop._between = lambda self, values: True  # type: ignore[method-assign]
    settings = ["train.device=\"cpu\"", "train.log_every=1000000", *overrides]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        loops = [
            stack.enter_context(loop_of(Path(folder) / str(number), read_recipe(recipe, settings).resolved))
            for number, recipe in enumerate(recipes)
        ]

        def step(number: int) -> Step:
            started, spent = time.perf_counter(), time.process_time()
            loops[number].run()
            return time.perf_counter() - started, time.process_time() - spent

        trained = [loop.recipe.train for loop in loops]
        yield [train.batch_size * train.sequence_length for train in trained], step


def serve(recipe: str, overrides: Sequence[str]) -> None:
    """Train a recipe by ``muse-run``, a step for each line of the standard input; answer what it took."""
    from muse_core.cli.run import main as run
    from muse_core.training.loop import Loop

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a run says is no answer
    at: list[Step] = []

    def between(self: Loop, values: object) -> bool:
        if at:
            took = time.perf_counter() - at[-1][0], time.process_time() - at[-1][1]
            print(json.dumps(took), file=answers, flush=True)
        else:  # after the first step, which compiles and warms up
            import muse_core

            tokens = self.recipe.train.batch_size * self.recipe.train.sequence_length
            print(json.dumps([str(Path(muse_core.__file__).parent.parent), tokens]), file=answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        at.append((time.perf_counter(), time.process_time()))
        return False

    Loop._between = between  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        given = [part for text in ("train.log_every=1000000", *overrides) for part in ("--set", text)]
        run([recipe, "--run-dir", str(Path(folder) / "run"), "--device", "cpu", *given])


@contextlib.contextmanager
def elsewhere(
    checkout: Path, recipe: Path, overrides: Sequence[str], python: Path | None
) -> Iterator[tuple[int, Callable[[], Step]]]:
    """Tokens of a step, and steps, of a recipe by another process with the code of ``checkout``."""
    sources = [] if python else [checkout, checkout / "kernels" / "src", *sorted(checkout.glob("plugins/*/src"))]
    command = [str(python or sys.executable), __file__, "--serve", str(recipe)]
    process = subprocess.Popen(
        command + [part for text in overrides for part in ("--set", text)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources)), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout,
    )
    assert process.stdin is not None and process.stdout is not None

    def step() -> Step:
        process.stdin.write("\n")
        process.stdin.flush()
        wall, spent = json.loads(process.stdout.readline())
        return wall, spent

    with process:
        ready = process.stdout.readline()
        if not ready or json.loads(ready)[0] != str(checkout):
            raise SystemExit(f"the code of {checkout} could not be made ready: {ready.strip() or 'see above'}")
        try:
            yield json.loads(ready)[1], step
        finally:
            process.stdin.close()


def told(values: Sequence[float], others: Sequence[float]) -> str:
    """The ratio of neighbours: median, smallest and largest."""
    ratios = [one / other for one, other in zip(values, others, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("recipes", nargs="*", metavar="RECIPE")
    given.add_argument("--steps", type=int, default=12)
    given.add_argument("--against", type=Path, metavar="CHECKOUT")
    given.add_argument("--python", type=Path, metavar="PYTHON")
    given.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given.add_argument("--set-here", action="append", default=[], metavar="KEY=VALUE")
    given.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = given.parse_args()
    default = [str(ROOT / "recipes" / f"{name}.toml") for name in ("phase2_base", "transformer_base")]
    recipes = options.recipes or default
    if options.serve:
        serve(recipes[0], options.set)
        return
    names = [Path(recipe).stem for recipe in recipes]
    with contextlib.ExitStack() as stack:
        tokens, here = stack.enter_context(stepper(recipes, [*options.set, *options.set_here]))
        sides: dict[str, Callable[[int], Step]] = {"here": here}
        sizes = {"here": tokens}
        if options.against is not None:
            checkout = options.against.resolve()
            theirs = [
                stack.enter_context(elsewhere(
                    checkout, checkout / Path(recipe).resolve().relative_to(ROOT), options.set, options.python
                ))
                for recipe in recipes
            ]  # fmt: skip
            sizes["against"] = [size for size, _ in theirs]
            sides["against"] = lambda number: theirs[number][1]()
        found: dict[tuple[str, int], list[Step]] = {}
        for count in range(WARM + options.steps):
            for number in range(len(recipes)):
                for side, step in sides.items():
                    one = step(number)
                    if count >= WARM:
                        found.setdefault((side, number), []).append(one)
    import torch

    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {torch.backends.cpu.get_cpu_capability()}, "
          f"load {os.getloadavg()[0]:.1f}; {options.steps} steps each, in turns")
    for kind, name in enumerate(("wall clock", "processor time")):
        def of(side: str, number: int, kind: int = kind) -> list[float]:
            return [one[kind] for one in found[side, number]]

        print(name)
        for side, number in found:
            median = statistics.median(of(side, number))
            print(f"  {side:8} {names[number]:20} {median * 1e3:8.1f} ms  {sizes[side][number] / median:8.0f} tokens/s")
        for side in sides:
            if len(names) == 2:
                print(f"  {side:8} tokens/s, {names[0]} : {names[1]}  "
                      + told([t / sizes[side][1] for t in of(side, 1)], [t / sizes[side][0] for t in of(side, 0)]))
        if "against" in sides:
            for number, recipe in enumerate(names):
                print(f"  here : against, tokens/s, {recipe}  {told(of('against', number), of('here', number))}")


if __name__ == "__main__":
    main()
