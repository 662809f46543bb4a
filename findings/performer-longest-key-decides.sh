#!/usr/bin/env bash
# performer-pytorch 1.1.4: causal FastAttention, and so PerformerLM(causal=True), sees the future by the size of later
# keys. So that exp does not overflow, the largest product of any key of the row with a feature is taken off all, and
# 0.0001 is added after that: a later key that is larger than those before it moves all earlier ones towards that
# constant, and so towards equal weights. At README's sizes, 512 tokens of width 64 with normal queries and keys, a last
# key of twice the length changes all outputs before it, by up to 0.9 where the largest is 3 and by 9 % on average (root
# of mean squares); one that is shorter than others before changes nothing, so that a check with one pair of rows can
# pass. A row that is continued has other scores than the row read at once. Nothing is said. The option
# generalized_attention=True has no such maximum and is causal.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 performer-pytorch==1.1.4
cat > "$work/program.py" <<'P'
import torch
from performer_pytorch import FastAttention

for general in (False, True):
    torch.manual_seed(0)
    attention = FastAttention(dim_heads=64, nb_features=256, causal=True, generalized_attention=general).double()
    queries, keys, values = torch.randn(3, 1, 8, 512, 64, dtype=torch.float64)
    whole = attention(queries, keys, values)[:, :, :-1]
    for length in (0.5, 1.5, 2.0, 3.0):
        other = keys.clone()
        other[:, :, -1] = length * torch.randn(8, 64, dtype=torch.float64)
        change = (attention(queries, other, values)[:, :, :-1] - whole).abs()
        share = ((change**2).mean() / (whole**2).mean()).sqrt()
        changed = (change.amax((0, 1, 3)) > 1e-9).sum()
        print(f"generalized_attention={general}, another last key, {length} times as long: {changed} of 511 earlier"
              f" tokens change, up to {change.max():.2f} of {whole.abs().max():.2f}, by {share:.1%} on average")
        if general or length < 1:
            assert changed == 0
        elif length >= 2:
            assert changed == 511 and share > 0.05 and change.max() > 0.3
    shorter = attention(queries[:, :, :256], keys[:, :, :256], values[:, :, :256])
    print(f"the first 256 tokens alone: up to {(shorter - whole[:, :, :256]).abs().max():.2f} from the same in the row")
    assert (shorter - whole[:, :, :256]).abs().max() > 0.01 or general
P
"$work/venv/bin/python" "$work/program.py"
