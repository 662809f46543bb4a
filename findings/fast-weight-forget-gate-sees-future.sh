#!/usr/bin/env bash
# fast-weight-attention 0.3.1: FastWeightAttention, causal by default, sees the future with use_forget_gate=True: how
# much of its fast weights a chunk reads is taken from the mean of that chunk's tokens, those after the one that reads
# included. The gate begins at 1, whatever the tokens, so that a test of a new layer finds no leak; training moves it.
# After 100 steps of Adam on a task that needs no future all earlier outputs of a chunk change with its last token, by
# up to 2 % of the largest here, and so do they when a row that ended inside the chunk is continued. Nothing is said.
# Without the gate nothing changes, nor do outputs of chunks before.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 fast-weight-attention==0.3.1 adam-atan2-pytorch==0.4.1 \
    einops==0.8.2 einx==0.4.3 torch-einops-utils==0.2.0
cat > "$work/program.py" <<'P'
import torch
from fast_weight_attention import FastWeightAttention

CHUNK, TOKENS, WIDTH = 8, 24, 16
torch.set_num_threads(1)


def outputs(layer, x):
    return layer(x, return_next_memories=True)[0]


def leak(layer):
    """Change of each earlier output, as a share of the largest output, by another last token and by two more."""
    x = torch.randn(4, TOKENS, WIDTH)
    other = torch.cat((x[:, :-1], torch.randn(4, 1, WIDTH)), 1)
    with torch.no_grad():
        before, after, shorter = outputs(layer, x), outputs(layer, other), outputs(layer, x[:, :-2])
    size = before.abs().max()
    changed = (before - after)[:, :-1].abs().amax((0, 2)) / size
    return changed, (before[:, :-2] - shorter).abs().amax((0, 2)) / size


def train(layer):
    """The mean of all tokens up to each."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(100):
        x = torch.randn(8, TOKENS, WIDTH)
        mean = x.cumsum(1) / torch.arange(1, TOKENS + 1)[:, None]
        loss = (outputs(layer, x) - mean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


for gate in (False, True):
    torch.manual_seed(0)
    layer = FastWeightAttention(WIDTH, dim_head=16, heads=2, chunk_size=CHUNK, use_forget_gate=gate)
    new, new_continued = leak(layer)
    train(layer)
    trained, continued = leak(layer)
    print(f"use_forget_gate={gate}: of {TOKENS - 1} earlier tokens {int((new > 1e-6).sum())} change in a new layer and"
          f" {int((trained > 1e-6).sum())} in a trained one, by up to {trained.max():.3f} of the largest output;"
          f" when two tokens follow, {int((continued > 1e-6).sum())} of {TOKENS - 2}, by up to {continued.max():.3f}")
    assert max(part.max() for part in (new, new_continued, trained[:-CHUNK + 1], continued[:-CHUNK + 2])) < 1e-6
    for part in (trained[-CHUNK + 1:], continued[-CHUNK + 2:]):
        assert (part > 1e-4).all() if gate else part.max() < 1e-6
P
"$work/venv/bin/python" "$work/program.py"
