#!/usr/bin/env bash
# gateloop-transformer 0.2.5: CausalFullAttention(data_dependent_rel_pos=True), the attention form of GateLoop,
# multiplies its decays along the features of a head instead of along the tokens. What lies between two tokens has no
# part in how they attend, and the layer has no positions: earlier tokens in any order give the last token the same
# output, where the recurrent form tells them apart. Products with a negative real part are clamped to 1e-10 and then
# inverted, so that outputs of inputs near 1 pass 1e8. README reports that attention with such positions did not
# converge and gives no reason. The causal mask holds, so that no test for leaks sees it.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 rotary-embedding-torch==0.9.1 \
    gateloop-transformer==0.2.5
cat > "$work/program.py" <<'P'
import torch
from gateloop_transformer import CausalFullAttention, GateLoopedAttention

SIZES = dict(dim=32, dim_head=16, heads=2)
LAYERS = {  # whether the last output depends on the order of the tokens before it
    "recurrent form": (lambda: GateLoopedAttention(32), True),
    "attention without positions": (lambda: CausalFullAttention(**SIZES), False),
    "attention, rotary positions": (lambda: CausalFullAttention(**SIZES, rotary_emb=True), True),
    "attention, own positions": (lambda: CausalFullAttention(**SIZES, data_dependent_rel_pos=True), False),
    "own positions, softmax": (
        lambda: CausalFullAttention(**SIZES, data_dependent_rel_pos=True, softmax_normalize=True), False),
}
torch.manual_seed(0)
x = torch.randn(1, 12, 32, dtype=torch.float64)
other = torch.cat((x[:, :11].flip(1), x[:, 11:]), 1)
for name, (make, ordered) in LAYERS.items():
    torch.manual_seed(0)
    layer = make().double().eval()
    with torch.no_grad():
        y, turned = layer(x), layer(other)
    largest = y.abs().max().item()
    change = ((turned - y)[0, -1].abs().max() / y[0, -1].abs().max()).item()
    print(f"{name}: tokens 0 to 10 turned round change the last output by {change:.0e} of itself; largest output"
          f" {largest:.1e}")
    assert change > 1e-3 if ordered else change < 1e-9, name
    assert (largest > 1e6) == (name == "attention, own positions"), name
P
"$work/venv/bin/python" "$work/program.py"
