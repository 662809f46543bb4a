"""KiB a token that a layer's operations read and write outside its kernels, forward and backward, counted on the CPU.

    python recipes/experiments/bytes_moved.py recipes/experiments/phase2_512x6.toml

Inputs and outputs of every torch operation that is no view, under bf16 autocast, in the first block. Of the bound
kernels the fast weights and the resolvents count nothing, and the others one pass: inputs and outputs, and twice the
inputs and the outputs backward.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from muse_core.comparison.targets import open_target
from muse_core.contracts import Tokens
from muse_core.model.kernels import operation_of

ROWS, LENGTH = 8, 1024
KERNELS = ("fast_weights", "causal_resolvent_apply", "causal_resolvent_diagonal")
PASSES = ("causal_convolution", "gated_norm", "short_convolution")


def size(x: object) -> int:
    """Bytes of a tensor's memory; what is expanded lies there once."""
    if not isinstance(x, Tensor):
        return 0
    numbers = 1
    for length, step in zip(x.shape, x.stride()):
        numbers *= length if step else 1
    return numbers * x.element_size()


class Count(TorchDispatchMode):
    """Bytes and calls by operation, while `on`."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.on = True

    def add(self, name: str, moved: int) -> None:
        self.bytes[name] += moved
        self.calls[name] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        if self.on and not view and "empty" not in name and name != "_unsafe_view":
            read = () if name.startswith(("new_", "zeros", "ones")) else tree_leaves((args, kwargs))
            self.add(name, sum(map(size, read)) + sum(map(size, tree_leaves(found))))
        return found


class Boxed(torch.autograd.Function):
    """A kernel in whose inside nothing is counted."""

    @staticmethod
    def forward(ctx, count: Count, function, spec, returned: list, *leaves):
        count.on = False
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() if _differentiable(x) else x for x in leaves]
            arguments, named = tree_unflatten(inputs, spec)
            outputs, out_spec = tree_flatten(function(*arguments, **named))
        returned.append(out_spec)
        found = tuple(x.detach().clone() for x in outputs)
        count.on = True
        ctx.count, ctx.inputs, ctx.outputs, ctx.name = count, inputs, outputs, operation_of(function)
        if ctx.name in PASSES:
            count.add(ctx.name, sum(map(size, inputs)) + sum(map(size, outputs)))
        return found

    @staticmethod
    def backward(ctx, *gradients):
        ctx.count.on = False
        wanted = [x for x in ctx.inputs if _differentiable(x)]
        found = iter(torch.autograd.grad(ctx.outputs, wanted, gradients, allow_unused=True))
        ctx.count.on = True
        if ctx.name in PASSES:
            ctx.count.add(ctx.name, 2 * sum(map(size, wanted)) + sum(map(size, ctx.outputs)))
        return None, None, None, None, *(next(found) if _differentiable(x) else None for x in ctx.inputs)


def _differentiable(x: object) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def boxed(count: Count, function):
    """The kernel as `Boxed`, with its own signature."""

    def call(*arguments, **named):
        leaves, spec = tree_flatten((arguments, named))
        returned: list = []
        outputs = Boxed.apply(count, function, spec, returned, *leaves)
        return tree_unflatten(list(outputs), returned[0])

    return call


def main(recipe: Path) -> None:
    model = open_target(recipe, ['train.device="cpu"', "model.depth=1"], 257).model
    count, tokens = Count(), Tokens(torch.arange(LENGTH).expand(ROWS, LENGTH))
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if operation_of(value) in KERNELS + PASSES:
                setattr(module, name, boxed(count, value))
    for site in model.blocks[0].sites:
        layer = model.blocks[0].get_submodule(site.name)
        x = torch.randn(ROWS, LENGTH, 512, requires_grad=True)
        with count, torch.autocast("cpu", torch.bfloat16):
            update = layer(x, None, {}, tokens).update
        report(site.name, "forward", count)
        with count:
            update.backward(torch.ones_like(update))
        report(site.name, "backward", count)


def report(layer: str, part: str, count: Count) -> None:
    """One line, and the counts start afresh."""
    kib = {name: moved / 1024 / ROWS / LENGTH for name, moved in count.bytes.most_common()}
    largest = ", ".join(f"{name} {moved:.1f} ({count.calls[name]})" for name, moved in list(kib.items())[:8])
    print(f"{layer} {part}: {sum(kib.values()):.1f} KiB a token in {count.calls.total()} operations: {largest}")
    count.bytes.clear()
    count.calls.clear()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    main(parser.parse_args().recipe)
