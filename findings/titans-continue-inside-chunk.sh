#!/usr/bin/env bash
# titans-pytorch 0.5.5: NeuralMemory hands on a state, and going on from it by one token is right everywhere. By several
# tokens in one call it is right only from the end of a chunk and by a whole chunk or more. By fewer, and by any number from
# inside a chunk, the call returns other numbers than one pass over the whole, without a word (some lengths raise an error
# about sizes).
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 titans-pytorch==0.5.5
cat > "$work/program.py" <<'P'
import torch
from titans_pytorch import NeuralMemory

CHUNK = 4
torch.manual_seed(0)
layer = NeuralMemory(dim=16, chunk_size=CHUNK, heads=1).eval()
x = torch.randn(1, 24, 16)
agrees = {}
with torch.no_grad():
    whole, _ = layer(x)
    for first, second in ((8, 1), (8, 2), (8, 3), (8, 4), (8, 5), (8, 8), (9, 1), (9, 2), (9, 3), (9, 4), (9, 8)):
        _, state = layer(x[:, :first])
        piece, _ = layer(x[:, first : first + second], state=state)
        difference = (piece - whole[:, first : first + second]).abs().max()
        agrees[first, second] = bool(difference < 1e-5)
        print(f"{first} tokens, then {second}: differs by {difference:.1e} where the largest is {whole.abs().max():.2f}")
right = [(8, 1), (8, 4), (8, 5), (8, 8), (9, 1)]
assert [lengths for lengths, same in agrees.items() if same] == right, agrees
P
"$work/venv/bin/python" "$work/program.py"
