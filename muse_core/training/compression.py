"""A run that compresses another: its recipe, made of the other's, with the stages of an installed plugin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from muse_core.data.kept import lock_in, newest_folder
from muse_core.errors import RecipeError, StorageError, typed
from muse_core.metrics.finished import read_summary
from muse_core.recipe import Checked, read_recipe
from muse_core.recipe.check import check_source
from muse_core.recipe.lock import plugins_named
from muse_core.recipe.reading import overridden
from muse_core.recipe.source import RecipeText
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.checkpoint.tensor_file import tensors_size
from muse_core.storage.disk import storage_errors
from muse_core.training.trained import newest_of

COMPRESS, DISTIL = "koopman-compress", "koopman-distil"
"""The stages, whoever provides them."""
INTEGERS = ("int8", "int4")
MODEL_FILES = "model*.safetensors"


@attrs.frozen(kw_only=True)
class Compression:
    """What ``muse compress`` is asked for."""

    method: str = "whitened"
    ratio: float | None = None
    then: str = "none"
    """How the factors are stored at last: none, int8 or int4."""
    steps: int = 200
    """Of distillation in each round."""
    rounds: int = 1

    def stages(self, teacher: Path) -> list[dict[str, Any]]:
        """The stages of the new run. Ratios of the rounds grow by equal factors to the one asked for. Raises
        RecipeError where ``then`` is to store in integers what the method has stored so."""
        if self.method in INTEGERS:
            if self.then != "none":
                raise RecipeError(
                    f"--quantize {self.then}: goes with a method that makes factors; {self.method} stores integers"
                )
            given = {} if self.ratio is None else {"ratio": float(self.ratio)}
            return [{"use": COMPRESS, "method": self.method, **given}]
        ratio, stages = 2.0 if self.ratio is None else float(self.ratio), []
        for number in range(1, self.rounds + 1):
            own = ratio ** (number / self.rounds)
            stages.append({"use": COMPRESS, "method": self.method, "ratio": own, "then": self.then})
            if self.steps:
                stages.append({"use": DISTIL, "teacher": str(teacher), "steps": self.steps})
        if self.then != "none":
            stages.append({"use": COMPRESS, "method": self.then})
        return stages


def recipe_of(run: Path, asked: Compression, overrides: Iterable[str] = ()) -> Checked:
    """The recipe of the run that compresses ``run``. Raises StorageError for a run that is not finished or cannot be
    read, and RecipeError for what cannot be asked."""
    lost: list[str] = []
    folder, _, _ = newest_of(run, untrained=False, say=lost.append)
    if lost:
        raise StorageError(f"{lost[0]} - put them back from a copy, or train on with muse-run --resume {typed(run)}")
    if not (run / "summary.json").is_file():
        raise StorageError(f"{run}: has not finished, so that its weights are not what it was to give - go on with "
                           f"muse-run --resume {typed(run)}")
    teacher = run.resolve()
    lock = lock_in(folder)
    with plugins_named(lock):
        table = dict(read_recipe(folder / "recipe.toml", made_with=lock.made_with).resolved)
    name = "-".join([str(table["name"]), asked.method, *([] if asked.then == "none" else [asked.then])])
    table |= {
        "name": name[:64],
        "stages": asked.stages(teacher),
        "init": {"from": str(teacher)},
    }
    if table["data"]["tokenizer"]["use"] != "bytes":  # one that was learned is not learned again
        table["data"] = {**table["data"], "tokenizer": {"use": "run", "from": str(teacher)}}
    for key in ("initializers", "parallel"):  # one process compresses what several have trained
        table.pop(key, None)
    table["train"] = {key: value for key, value in table["train"].items() if key != "cuda_graph"}  # nothing is recorded
    return check_source(overridden(RecipeText(table, f"muse compress {typed(run)}", {}), list(overrides)))


def compress_run(
    run: Path, asked: Compression, output: Path | None, overrides: Iterable[str] = (), *, report: bool = False
) -> tuple[Path, str]:
    """Do it; returns the new run's directory and a sentence of sizes and perplexities."""
    from muse_core.cli.launch import fresh

    checked = recipe_of(run, asked, overrides)
    folder = fresh(checked, None, output, allow_drift=False, report=report)
    before, after = weight_bytes(run), weight_bytes(folder)
    return folder, f"{before:,} to {after:,} bytes of weights, {before / after:.2f} times smaller" + _worse(run, folder)


def weight_bytes(run: Path) -> int:
    """Of the weights and buffers in a run's newest checkpoint, without what describes them in its files, of which each
    process that trained it wrote one. Raises StorageError."""
    found = Checkpoints(newest_folder(run)).newest(quarantine=False)
    if found is None:
        raise StorageError(f"{run}: has no checkpoint that can be used")
    with storage_errors("read the weights", found[0].path):
        return sum(map(tensors_size, found[0].path.glob(MODEL_FILES)))


def _worse(run: Path, folder: Path) -> str:
    """How the perplexity moved, where both runs read the same held-out text."""
    old, new = map(read_summary, (run, folder))
    same = all(old.get(key) == new.get(key) for key in ("held_out_split", "held_out_tokens"))
    before, after = old.get("held_out_perplexity"), new.get("held_out_perplexity")
    if not same or not isinstance(before, float) or not isinstance(after, float):
        return ""
    return f"; held-out perplexity {before:.3f} to {after:.3f} ({after / before - 1:+z.1%})"
