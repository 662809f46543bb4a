#!/usr/bin/env bash
# mega-pytorch 0.1.0: Mega, causal by default, sees the future with norm_mhesa_heads=True: the GroupNorm that is put
# behind the moving averages takes its mean and variance over all tokens of the row, so that every output depends on the
# last token, and a row that is continued token by token gets other scores than the row read at once. Nothing is said.
# Without the option no earlier output changes.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 mega-pytorch==0.1.0
cat > "$work/program.py" <<'P'
import torch
from mega_pytorch import Mega

for option in (False, True):
    torch.manual_seed(0)
    model = Mega(dim=32, num_tokens=20, depth=2, ema_heads=4, norm_mhesa_heads=option)
    model = model.double().eval()
    tokens = torch.randint(0, 20, (1, 24))
    other = tokens.clone()
    other[0, -1] = (other[0, -1] + 1) % 20
    with torch.no_grad():
        whole, changed, shorter = (model(each) for each in (tokens, other, tokens[:, :-1]))
    future = (whole - changed)[0, :-1].abs().amax(-1)
    length = (whole[:, :-1] - shorter).abs().max()
    print(f"norm_mhesa_heads={option}: another last token changes {(future > 1e-9).sum()} of 23 earlier outputs, up to"
          f" {future.max():.1e} of {whole.abs().max():.2f}; leaving it out changes them by {length:.1e}")
    assert int((future > 1e-9).sum()) == (23 if option else 0) and (length > 1e-9) == option
P
"$work/venv/bin/python" "$work/program.py"
