"""What ``train.compile`` makes of a model: one graph of all of it, or a graph for each kind of block.

Blocks of one kind compute the same from their own weights, so that one graph serves all of them ("regional
compilation", https://docs.pytorch.org/tutorials/recipes/regional_compilation.html).
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from muse_core.contracts import ModelOutput, State, Tokens
from muse_core.errors import RecipeError
from muse_core.model.stack import BlockOutput
from muse_core.out_of_memory import ran_out

MIXED = "triton.mix_order_reduction"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def compiled(model: nn.Module, wanted: bool | Literal["blocks"], *, half: bool = True) -> Any:
    """What to call in training for the model: itself, a compiled one of one graph (True), or itself with compiled
    blocks. The state of what is compiled has no gradient. ``half``: some of it is computed in bf16 or fp16. Raises
    RecipeError for "blocks" and a model without any."""
    if wanted == "blocks":
        compile_blocks(model, half=half)
        return model
    return torch.compile(WithoutStateGradient(model), options=compiler_options(half)) if wanted else model


def compiler_options(half: bool) -> dict[str, Any] | None:
    """Options of torch's compiler, without what makes wrong code; None where there is none to be set.

    torch 2.10 and all later ones that were looked at (to 2.14.1) may sum two ways in one kernel, and lose such a sum
    where a graph puts it beside others, as the gradient of stacked vectors does: what is read there is whatever the
    memory held (https://github.com/pytorch/pytorch/issues/193061).

    On a CPU with AVX-512 torch 2.13 reads a transposed bf16 or fp16 matrix wrongly where a kernel uses it twice, as
    gradients of keys and decays do, if g++ 12 compiles it (findings/torch-inductor-transposed-half.sh). Vectors of 256
    bits are right, and slower: code with ``half``, in which there are such matrices, has them.
    """
    from torch._inductor import config  # takes a second, which a run that compiles nothing need not spend

    options: dict[str, Any] = {}
    if hasattr(config.triton, MIXED.rpartition(".")[2]):
        options[MIXED] = False
    if half and torch.backends.cpu.get_cpu_capability() == "AVX512":
        options["cpp.simdlen"] = 256
    return options or None


_COMPILED: list[Any] = [lambda: None, ()]
"""The model, by a weak reference, and the rows that this process compiled last."""


def forget_others(model: nn.Module, *rows: object) -> None:
    """Forget what was compiled for another model or other ``rows``, such as their number and length, in an earlier
    stage or measurement: torch would compile the second length that it sees for rows of any, whose kernels are slower
    and round otherwise."""
    if _COMPILED[0]() is not model or _COMPILED[1] != rows:
        torch.compiler.reset()
        _COMPILED[:] = weakref.ref(model), rows


def blocks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each block: the members of the lists of modules that a model has as its children."""
    for part, members in model.named_children():
        if isinstance(members, nn.ModuleList):
            for number, block in enumerate(members):
                yield f"{part}.{number}", block


def compile_blocks(model: nn.Module, *, half: bool = True) -> None:
    """Compile each block, in place, for calls in training mode with gradients: evaluations and probes, whose shapes are
    others, stay as they were. Blocks that are compiled already stay so. Raises RecipeError where there is none, and for
    one with a ``forward`` of its own, which would be passed over for that of its class."""
    blocks = dict(blocks_of(model))
    if not blocks:
        raise RecipeError(
            f"train.compile: {type(model).__name__} keeps no list of blocks (nn.ModuleList) to be compiled one by "
            "one - set train.compile = true (the whole model; not with parallel.shard above 1) or false"
        )
    functions: dict[Any, Callable[..., Any]] = {}
    for name, block in blocks.items():
        own = vars(block).get("forward")
        if own is not None and not isinstance(own, CompiledForward):
            raise RecipeError(
                f"train.compile: {name} has a forward that was set on it and is not its class's, and blocks are "
                "compiled by their classes - set train.compile = true (the whole model; not with parallel.shard above "
                "1) or false"
            )
        if own is None:
            kind = kind_of(block)
            if kind not in functions:
                functions[kind] = torch.compile(
                    with_own_code(through, f"block_of_kind_{len(functions)}"), options=compiler_options(half)
                )
            block.forward = CompiledForward(block, functions[kind])


class CompiledForward:
    """In the place of a block's ``forward``: hooks of the block itself are called around it, as ever.

    A block that holds hooked modules is computed plainly: torch does not look whether hooks came or went since it
    compiled. It knows the block and not its method, so that a deep copy of the block computes with its own weights.
    """

    def __init__(self, block: nn.Module, function: Callable[..., Any]):
        self.block = block
        self.function = function

    def __call__(self, *given: Any, **named: Any) -> Any:
        block = self.block
        if block.training and torch.is_grad_enabled() and not hooked(block):
            return self.function(block, *given, **named)
        return type(block).forward(block, *given, **named)


def hooked(block: nn.Module) -> bool:
    """Whether somebody has set a hook on a module within a block."""
    return any(getattr(one, hooks) for one in block.modules() if one is not block for hooks in HOOKS)


def through(block: nn.Module, *given: Any, **named: Any) -> Any:
    """What is compiled: a block's output, its state without gradient (see ``WithoutStateGradient``)."""
    output = type(block).forward(block, *given, **named)
    if isinstance(output, BlockOutput):
        state = without_gradient(output.state)
        return BlockOutput(output.x, state, output.signals, output.losses, output.metrics)
    return output


def kind_of(block: nn.Module) -> Any:
    """Equal for blocks that may share a graph: their modules and the shapes of what these hold, by name. torch compares
    the rest before it takes a graph."""
    parts = tuple((name, type(part)) for name, part in block.named_modules())
    return parts, tuple((name, tuple(value.shape), value.dtype) for name, value in block.state_dict().items())


def with_own_code(function: types.FunctionType, name: str) -> types.FunctionType:
    """A copy of a function by another name. torch keeps graphs, of which it makes eight and then no more, and the sizes
    that vary by a function's code: each kind of block has its own."""
    return types.FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)


class WithoutStateGradient(nn.Module):
    """A model whose state is detached, as the loop does with it after every micro-batch.

    Within a compiled graph this matters: a graph's outputs that could have a gradient are given one of zeros, which
    is written, added to every gradient behind the state and carried through the kernels. Anything but a call is the
    model's own.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, state: State = None, tokens: Tokens | None = None) -> ModelOutput:
        output = self.model(inputs, state, tokens)
        return ModelOutput(output.hidden, without_gradient(output.state), output.losses, output.metrics)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def without_gradient(state: Any) -> Any:
    """A state detached. Spelled out for dicts and lists: torch 2.6 compiles no pytree of a subclass."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, dict):
        return {key: without_gradient(value) for key, value in state.items()}
    if isinstance(state, list):
        return [without_gradient(value) for value in state]
    return state


def require_compiler(device: torch.device) -> None:
    """Compile something small, as ``train.compile`` will compile the model. Raises RecipeError where that fails, as
    without a C++ compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError, AssertionError) as error:
        if ran_out(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = lines[0] if lines else type(error).__name__
        raise RecipeError(
            f"train.compile: torch.compile does not work here ({type(error).__name__}: {what}) - install a C++ "
            "compiler (g++, or name one in CXX), or set train.compile = false"
        ) from error
    finally:
        torch.compiler.reset()
