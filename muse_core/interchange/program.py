"""A run's model as a program of torch.export: one file that runs with torch alone, without MUSE or a plugin.

Letters: B rows, N tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from muse_core.errors import RecipeError
from muse_core.interchange.hugging_face import library_tokenizer
from muse_core.interchange.target import require_free, require_text
from muse_core.storage.new_directory import filled
from muse_core.training.trained import open_trained

PROGRAM, TABLE, TOKENIZER = "model.pt2", "program.json", "tokenizer.json"
PLAIN = ['kernels.backend="torch"', 'train.precision="fp32"', 'train.device="cpu"', "train.compile=false"]
"""Operations of torch alone, in fp32."""
OF_TORCH = ("aten", "prim", "prims")
NEAR = 1e-4
"""Largest difference of a score between the program and the model, relative to the largest score."""


class Scores(nn.Module):
    """ids (B, N) → scores (B, N, V) fp32 of the token after each, every row one document from its start."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.model.logits(self.model(ids).hidden)
        return scores.float()


def export(
    run: Path, target: Path, *, length: int | None, step: int | None, say: Callable[[str], None]
) -> list[str]:
    """Write ``model.pt2``, ``tokenizer.json`` and ``program.json`` of ``run`` into the new ``target``; returns
    the names of the files.

    ``length``: tokens of a row, None for the run's training length; rows may be any number. Raises StorageError when
    ``target`` holds something or cannot be written, and RecipeError for a model that is no program of torch alone: it
    has operations of its own, or the way it goes depends on values.
    """
    require_free(target)
    setup, at = open_trained(run, overrides=PLAIN, step=step, untrained=False, say=say)
    setup.model.requires_grad_(False)  # a reader need not know of no_grad
    require_text(setup, run)
    length = length or setup.recipe.train.sequence_length
    program, ids, due = traced(setup.model, setup.corpus.vocabulary_size, length, str(run))
    written = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program, written)
    tokenizer, separator = library_tokenizer(setup.corpus.tokenizer)
    table = {
        "name": setup.recipe.name, "trained_steps": at, "length": length, "torch": torch.__version__,
        "vocabulary_size": setup.corpus.vocabulary_size, "separator": setup.corpus.tokenizer.separator,
        "separator_token": separator,
    }
    with filled(target, "write the export") as partial:
        (partial / PROGRAM).write_bytes(written.getbuffer())
        _compare(partial / PROGRAM, ids, due, str(run))
        (partial / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
        (partial / TABLE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return sorted(path.name for path in target.iterdir())


def traced(
    model: nn.Module, vocabulary: int, length: int, where: str
) -> tuple[torch.export.ExportedProgram, Tensor, Tensor]:
    """The program of a model on rows of ``length`` tokens, ids (2, N) and the scores (2, N, V) that are due. Raises
    RecipeError as ``export``."""
    scores = Scores(model)
    ids = torch.randint(vocabulary, (3, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        due = scores(ids)
        try:
            # What fails is printed too, as thousands of lines of its graph.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                program = torch.export.export(
                    scores, (ids,), dynamic_shapes=({0: torch.export.Dim("rows")},), strict=False
                )
        except Exception as error:  # whatever a layer does that cannot be traced
            raise _refused(where, "torch.export cannot make a program of this model", error) from error
        if foreign := sorted(set(_foreign(program.graph_module))):
            raise RecipeError(f"{where}: the model has operations that torch alone does not have "
                              f"({', '.join(foreign)}) - export it to transformers by --to hf")
    _inline_autocast(program.graph_module)
    _forget_sources(program.graph_module)
    return program, ids[:2], due[:2]


def _compare(file: Path, ids: Tensor, due: Tensor, where: str) -> None:
    """Opens the program as a reader of it does. Raises RecipeError where it does not give the model's scores."""
    try:
        found = torch.export.load(file).module()(ids)
    except Exception as error:  # whatever torch could write and cannot read
        raise _refused(where, "torch cannot read the program of this model", error) from error
    far = float((found - due).abs().max() / due.abs().max())
    if not far <= NEAR:
        raise RecipeError(f"{where}: the program's scores are {far:.2g} of the largest away from the model's, so that "
                          "it is not written - export it to transformers by --to hf")


def _refused(where: str, what: str, error: Exception) -> RecipeError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RecipeError(f"{where}: {what}: {said} - export it to transformers by --to hf")


def _inline_autocast(graph: fx.GraphModule) -> None:
    """Regions of layers that switch autocast off: there is none to switch off in fp32, and a program that has one whose
    results nobody uses is written by torch 2.13 and cannot be read again (findings/torch-export-unused-autocast.sh)."""
    wrapped = torch.ops.higher_order.wrap_with_autocast
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not wrapped:
            continue
        body, arguments = graph.get_submodule(node.args[4].target), node.args[5:]
        _inline_autocast(body)  # one within it is named as a part of it
        inputs = [one for one in body.graph.nodes if one.op == "placeholder"]
        with graph.graph.inserting_before(node):
            results = graph.graph.graph_copy(body.graph, dict(zip(inputs, arguments, strict=True)))
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])  # each takes one of the results
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _nodes(graph: fx.GraphModule) -> Iterator[fx.Node]:
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def _foreign(graph: fx.GraphModule) -> Iterator[str]:
    """Operations that are registered by others than torch."""
    for node in _nodes(graph):
        target: Any = node.target
        if isinstance(target, torch._ops.OpOverload) and target.namespace not in OF_TORCH:
            yield f"{target.namespace}.{target._opname}"


def _forget_sources(graph: fx.GraphModule) -> None:
    """Traces name the files of this machine."""
    for node in _nodes(graph):
        node.meta.pop("stack_trace", None)
