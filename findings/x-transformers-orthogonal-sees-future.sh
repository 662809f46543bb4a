#!/usr/bin/env bash
# x-transformers 2.31.10: a Decoder, which is causal, sees the future with orthog_residual=True or with
# attn_orthog_projected_values=True (also per head): orthog_project takes all tokens of a row as one vector instead of
# one token after another, so that every output depends on the last token, without a word. Without them none does.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 x-transformers==2.31.10
cat > "$work/program.py" <<'P'
import torch
from x_transformers import Decoder, TransformerWrapper

OPTIONS = (None, "orthog_residual", "attn_orthog_projected_values", "attn_orthog_projected_values_per_head")
seen = []
for option in OPTIONS:
    torch.manual_seed(0)
    layers = Decoder(dim=32, depth=2, heads=2, **({option: True} if option else {}))
    model = TransformerWrapper(num_tokens=20, max_seq_len=64, attn_layers=layers).double().eval()
    tokens = torch.randint(0, 20, (1, 24))
    other = tokens.clone()
    other[0, -1] = (other[0, -1] + 1) % 20
    with torch.no_grad():
        first, second = model(tokens), model(other)
    change = (first - second)[0, :-1].abs().amax(-1)
    print(f"{option or 'defaults'}: another last token changes {(change > 1e-9).sum()} of 23 earlier outputs,"
          f" by at most {change.max():.1e} of {first.abs().max():.2f}")
    seen.append(int((change > 1e-9).sum()))
assert seen[0] == 0 and seen[1:] == [23, 23, 23], seen
P
"$work/venv/bin/python" "$work/program.py"
