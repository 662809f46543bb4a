#!/usr/bin/env bash
# native-sparse-attention-pytorch 0.2.3: SparseAttention, going on from its cache, leaves out the learned memory of the
# compressed branch (compress_mem_kv) until a first block is compressed; forward attends to it from the first token on.
# From a prompt shorter than compress_block_size the tokens up to there are computed by another function than the one that
# was trained. The memory begins as zero, which is what the branch gives without it, so that a test of a new layer finds
# no difference; training moves it. Nothing is said. From a prompt of one block or more all agrees.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 native-sparse-attention-pytorch==0.2.3
cat > "$work/program.py" <<'P'
from importlib.metadata import version

import torch
from native_sparse_attention_pytorch import SparseAttention

BLOCK, LENGTH = 8, 24
print("native-sparse-attention-pytorch", version("native-sparse-attention-pytorch"))
torch.manual_seed(0)
layer = SparseAttention(
    dim=32, dim_head=16, heads=2, causal=True, sliding_window_size=4, compress_block_size=BLOCK,
    compress_block_sliding_stride=BLOCK, selection_block_size=BLOCK, num_selected_blocks=2,
).double()
optimizer = torch.optim.AdamW(layer.parameters(), lr=0.003)


def draw(rows):
    """Tokens, and the mean of those so far as what is to be learned."""
    x = torch.randn(rows, LENGTH, 32, dtype=torch.float64)
    return x, x.cumsum(1) / torch.arange(1, LENGTH + 1)[:, None]


def from_the_cache(x, prompt):
    y, cache = layer(x[:, :prompt], return_cache=True)
    pieces = [y]
    for place in range(prompt, LENGTH):
        y, cache = layer(x[:, place : place + 1], cache=cache, return_cache=True)
        pieces.append(y)
    return torch.cat(pieces, 1)


for steps in (0, 100):
    for _ in range(steps):
        x, target = draw(16)
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        x, _ = draw(4)
        whole = layer(x)
        print(f"after {steps} steps of training: the largest of the memory is"
              f" {layer.compress_mem_kv.abs().max():.2f}, of the outputs {whole.abs().max():.2f}")
        for prompt in (1, 3, BLOCK - 1, BLOCK, 2 * BLOCK + 3):
            apart = (from_the_cache(x, prompt) - whole).abs().amax((0, 2))
            wrong = (apart > 1e-9).nonzero().flatten().tolist()
            print(f"  a prompt of {prompt}, then one at a time: tokens {wrong} differ, by up to {apart.max():.1e}")
            assert wrong == (list(range(prompt, BLOCK)) if steps else []), wrong
P
"$work/venv/bin/python" "$work/program.py"
