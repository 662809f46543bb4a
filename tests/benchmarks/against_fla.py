"""A recipe's tokens a second beside those of Gated DeltaNet by flash-linear-attention, in one process on a GPU.

    python tests/benchmarks/against_fla.py recipes/experiments/phase2_512x6.toml \
        recipes/experiments/gated_deltanet_28m.toml --length 2048 [--compile] [--recorded]

The second recipe is measured as it is, and with fla's layer of the same sizes (flash-linear-attention 0.6.0) in place
of every ``gated-deltanet``; all else of the model, the loss and the optimiser stay the same. A row each of the forward
pass of the model without gradients and of the training step of ``muse cost``.

fla-core refuses the backward pass of its gated rule on Hopper under Triton 3.4 to 3.7.0, where its gradients would be
wrong; a later Triton may stand beside the torch that came with another one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import triton
from step_launches import measured, show
from torch import nn

from muse_core.comparison.cost import training_step
from muse_core.comparison.targets import Target, open_target
from muse_core.contracts import LayerOutput, Tokens
from muse_core.training.compilation import compiled


class Layer(nn.Module):
    """fla's layer as a MUSE layer that carries no state; x (B, N, D)."""

    def __init__(self, ours: Any, width: int):
        super().__init__()
        from fla.layers import GatedDeltaNet

        sizes = {"head_dim": ours.key_width, "expand_v": ours.value_width / ours.key_width, "num_heads": ours.heads}
        self.layer = GatedDeltaNet(hidden_size=width, mode="chunk", **sizes)

    def forward(self, x: torch.Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        return LayerOutput(self.layer(x)[0], None)


def by_fla(target: Target) -> Target:
    """The model with fla's layers."""
    for block in target.model.blocks:
        for site in block.sites:
            if site.use.name == "gated-deltanet":
                ours = block.get_submodule(site.name)
                block.add_module(site.name, Layer(ours, target.recipe.model.options.width))
    return target


def forward_pass(target: Target, rows: int, length: int) -> Any:
    """The model's pass over random tokens without gradients, in training's precision."""
    model = compiled(target.model.to(target.precision.device).eval(), target.recipe.train.compile)
    ids = torch.randint(257, (rows, length), device=target.precision.device)

    def run() -> None:
        with torch.no_grad(), target.precision():
            model(ids)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--length", dest="lengths", type=int, action="append", help="may be repeated [default: 2048]")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recorded", action="store_true", help="training steps as CUDA graphs (train.cuda_graph)")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    settings = ["train.compile=true"] if given.compile else []
    recorded = ["train.cuda_graph=true"] if given.recorded else []
    print(f"torch {torch.__version__}, triton {triton.__version__}, {torch.cuda.get_device_name()}", flush=True)
    for length in given.lengths or [2048]:
        rows = given.tokens // length
        for name, path, own in (("", given.recipe, True), ("", given.peer, True), (" by fla", given.peer, False)):
            for what in ("forward", "step"):
                told = [*settings, *(recorded if what == "step" else [])]
                target = open_target(path, told, 257)
                target = target if own else by_fla(target)
                label = f"{path.stem}{name} {target.parameters:,} {rows} x {length} {' '.join(told)} {what}"
                try:
                    if what == "forward":
                        torch.compiler.reset()
                        run = forward_pass(target, rows, length)
                    else:
                        run, _ = training_step(
                            target.model, target.recipe, target.precision, rows=rows, length=length
                        )
                    began = time.perf_counter()
                    for _ in range(4):
                        run()
                    torch.cuda.synchronize()
                    show(label, measured(run, given.repeats), given.tokens, time.perf_counter() - began, 0)
                except RuntimeError as refusal:
                    print(f"{label}: {str(refusal).strip().splitlines()[0]}", flush=True)
                del target
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
