"""Which matrix products on a GPU are wrong, as where CUDA's multi-process service gives a process a part of it.

    nvidia-cuda-mps-control -d
    CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=20 python tests/benchmarks/limited_products.py
    echo quit | nvidia-cuda-mps-control

Each product is of ones and of a constant, three times, and every entry of it is compared with the one sum that they
all have. Printed are, for each precision, the products (rows x terms x columns) of which an entry is more than 2 % off,
with the largest distance over the sum. Nothing of MUSE is used.
"""

from __future__ import annotations

import argparse

import torch

SHAPES = (
    (64, 8192, 384), (1024, 8192, 384), (16, 65536, 512), (512, 512, 512), (192, 1024, 192), (1024, 1024, 1024),
    (8192, 512, 1152), (8192, 1024, 384), (65536, 512, 512), (512, 65536, 2048),
)
KINDS = {
    "bf16": (torch.bfloat16, False), "fp16": (torch.float16, False), "fp32": (torch.float32, False),
    "tf32": (torch.float32, True), "fp64": (torch.float64, False),
}
REPEATS, NEAR = 3, 0.02


def distance(rows: int, terms: int, columns: int, dtype: torch.dtype) -> float:
    """The largest distance of an entry from the sum, over the sum."""
    one = torch.ones(rows, terms, device="cuda", dtype=dtype)
    constant = max(1 / terms, 2.0**-13) if dtype == torch.float16 else 1 / terms  # no subnormal numbers
    other = torch.full((terms, columns), constant, device="cuda", dtype=dtype)
    due = float(other[0, 0]) * terms
    found = [((one @ other).double() / due - 1).abs().nan_to_num(nan=torch.inf).max() for _ in range(REPEATS)]
    return float(torch.stack(found).max())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
    for name, (dtype, tf32) in KINDS.items():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        wrong = {shape: off for shape in SHAPES if (off := distance(*shape, dtype)) > NEAR}
        told = ", ".join(f"{'x'.join(map(str, shape))} {off:.2g}" for shape, off in wrong.items())
        print(f"{name}: {len(wrong)} of {len(SHAPES)} wrong{': ' if told else ''}{told}")


if __name__ == "__main__":
    main()
