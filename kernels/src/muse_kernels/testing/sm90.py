"""Compiling Triton kernels for Hopper on a machine without a GPU, to hold what the compiler made of them."""

import re
import subprocess
import tempfile
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {torch.int64: "*i64", torch.int32: "*i32", torch.int8: "*i8", torch.bool: "*i1"}
POINTERS |= {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
COUNTS_HOLD = triton.__version__.startswith("3.7.")
"""Whether this is the Triton that the ceilings of the tests were counted with. Others compile the same kernels to a few
registers more or fewer, and 3.8.0 spills 16 bytes in the Hebbian gradients and 8 in the delta rule's forward pass."""
OPTIONS = ("num_warps", "num_stages", "maxnreg")


class Resources(NamedTuple):
    """What a kernel takes: registers and stack bytes (spills) of a thread, SASS instructions."""

    registers: int
    stack: int
    instructions: int


class Recorder:
    """Stands in a kernel's place and keeps the grids and arguments of its launches."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.grids: list[tuple[int, ...]] = []
        self.launches: list[tuple[tuple, dict]] = []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *arguments, **named: self.launches.append((arguments, named))

    def compile(self) -> Resources:
        """What the last launch takes."""
        return _read(self.compiled().asm["cubin"])

    def compiled(self) -> triton.compiler.CompiledKernel:
        """The last launch, specialised as Triton would for these arguments."""
        arguments, named = self.launches[-1]
        values = dict(zip(self.kernel.arg_names, arguments)) | {k: v for k, v in named.items() if k not in OPTIONS}
        signature, constants, attributes = {}, {}, {}
        for place, name in enumerate(self.kernel.arg_names):
            value = values[name]
            divisible = isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0)
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
            elif type(value) is int and value != 1 and name not in named:
                signature[name] = "i32"
            else:
                signature[name], constants[name] = "constexpr", value
            if divisible and name not in constants:
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        options = {k: v for k, v in named.items() if k in OPTIONS and v is not None}
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def products_from_registers(kernel: triton.compiler.CompiledKernel) -> list[str]:
    """The `wgmma` whose first operand lies in registers: `wgmma.mma_async... {sums}, {first operand}, second`."""
    return re.findall(r"wgmma\.mma_async[^;]*?\}, *\{", kernel.asm["ptx"])


def _read(cubin: bytes) -> Resources:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    instructions = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s", code, re.MULTILINE)
    return Resources(int(registers), int(stack), len(instructions))
