#!/usr/bin/env bash
# torch 2.13.0, Inductor on a CPU with AVX-512, with g++ 12.2: a compiled elementwise function that uses a transposed
# bfloat16 or float16 matrix twice, as y * x.t() + x.t() does, computes with wrong numbers of x: some 1,975 of 2,048 results
# are wrong for x (32, 64), hundreds of them not finite, where plain torch is right. Nothing is said. Inductor's C++ loads
# a tile of x through transpose_mxn into an array, and writes the same call twice where x is used twice
# (CppTile2DKernel.gen_transposed_tile_load_store: the line of a tile that is there already is written again); g++ at
# -O3 then loses the tile if there are two or more in the inner loop. Gradients of chunked recurrences have such
# products. It is right with x of float32, with one use, with one tile (x 32 wide), for AVX2 (cpp.simdlen = 256),
# without vectors (cpp.simdlen = 1), and with g++ -O2.
# Fails if that changes. Needs g++ and a CPU with AVX-512.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
export TORCHINDUCTOR_CACHE_DIR="$work/cache"
g++ --version | head -1
cat > "$work/program.py" <<'P'
import torch


def twice(x, y):
    return y * x.t() + x.t()


def once(x, y):
    return y * x.t()


def errors(function, dtype, rows=32, columns=64, simdlen=None):
    """How many results of the compiled function differ by more than rounding."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    x, y = torch.randn(rows, columns).to(dtype), torch.randn(columns, rows)
    plain = function(x, y)
    options = {} if simdlen is None else {"cpp.simdlen": simdlen}
    found = torch.compile(function, dynamic=False, options=options)(x, y)
    assert plain.dtype == found.dtype == torch.float32 and bool(plain.isfinite().all())
    wrong = int((~((found - plain).abs() < 1e-4)).sum())
    print(f"{function.__name__}, {dtype}, x ({rows}, {columns}), simdlen {simdlen}: {wrong} of {plain.numel()} results"
          f" are wrong, {int((~found.isfinite()).sum())} not finite, the largest finite"
          f" {found[found.isfinite()].abs().max():.2g} (plain {plain.abs().max():.2g})")
    return wrong


assert torch.backends.cpu.get_cpu_capability() == "AVX512", "this needs a CPU with AVX-512"
for dtype in (torch.bfloat16, torch.float16):
    assert errors(twice, dtype) > 1000
    assert errors(once, dtype) == 0
    assert errors(twice, dtype, columns=32) == 0
    assert errors(twice, dtype, simdlen=256) == 0
    assert errors(twice, dtype, simdlen=1) == 0
assert errors(twice, torch.float32) == 0
P
"$work/venv/bin/python" "$work/program.py"
