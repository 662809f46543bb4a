#!/usr/bin/env bash
# PoPE-pytorch 0.2.1: flash_attn_with_pope(causal=True) with fewer queries than keys, as when a text goes on from kept
# keys and values, is right for one query and wrong for several: the queries are given the positions of the last keys and
# the mask of the first, so that two queries after ten tokens see one key and two. apply_pope_to_qk takes any number of
# queries up to that of the keys, and its own products under a mask that ends at the last key are right. Nothing is said.
# What is fed in pieces, as a long prompt or drafted tokens are, has other outputs than the same in one call. This is the
# form without Triton, which a CPU takes. Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 PoPE-pytorch==0.2.1
cat > "$work/program.py" <<'P'
from importlib.metadata import version

import torch
from PoPE_pytorch import PoPE, flash_attn_with_pope

LENGTH, HEADS, WIDTH = 24, 4, 32
print("PoPE-pytorch", version("PoPE-pytorch"))
torch.manual_seed(0)
pope = PoPE(WIDTH, heads=HEADS).double()
torch.nn.init.uniform_(pope.bias, -3, 0)
queries, keys, values = torch.randn(3, 1, HEADS, LENGTH, WIDTH, dtype=torch.float64)


def by_hand(first, last):
    """Attention of queries `first` to `last` over all keys up to `last`, from the library's rotated products."""
    q, k = pope.apply_pope_to_qk(pope(last), queries[:, :, first:last], keys[:, :, :last])
    seen = torch.arange(last) <= torch.arange(first, last)[:, None]
    scores = (q @ k.transpose(-1, -2) * WIDTH**-0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ values[:, :, :last]


def attention(first, last):
    return flash_attn_with_pope(
        queries[:, :, first:last], keys[:, :, :last], values[:, :, :last], pos_emb=pope(last), causal=True
    )


with torch.no_grad():
    whole = attention(0, LENGTH)
    assert (by_hand(0, LENGTH) - whole).abs().max() < 1e-12
    for size in (1, 2, 3, 8, 12):
        found = []
        for piece in (attention, by_hand):
            joined = torch.cat([piece(first, first + size) for first in range(0, LENGTH, size)], 2)
            found.append((joined - whole).abs().amax((0, 1, 3)))
        wrong = int((found[0] > 1e-9).sum())
        print(f"pieces of {size}: {wrong} of {LENGTH} outputs differ from those of one call, by up to"
              f" {found[0].max():.1e} where the largest is {whole.abs().max():.1f}; with the mask by hand by"
              f" {found[1].max():.0e}")
        assert found[1].max() < 1e-12
        assert (wrong == 0) == (size == 1), size
        assert size == 1 or (wrong == LENGTH - size and found[0].max() > 0.5), (wrong, found)

    values[:, :, 1:] += 1  # all but the first token, of which the first of the last two queries is to see 23
    moved = (attention(LENGTH - 2, LENGTH)[:, :, 0] - values[:, :, 0]).abs().max()
    print(f"the first of the last two queries returns the value of token 0 to within {moved:.0e}")
    assert moved < 1e-12
P
"$work/venv/bin/python" "$work/program.py"
