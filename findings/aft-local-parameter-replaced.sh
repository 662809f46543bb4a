#!/usr/bin/env bash
# aft-pytorch 0.2.2: AFTLocal makes its position biases, wbias, a new parameter in every call. An optimizer that was
# made before, as in any training loop, keeps the first one, which has no gradient from then on: the weights that say
# which tokens a token looks at stay as they were drawn, while the others are trained. AFTFull, which is the same but
# for the window, trains its own. What is said is torch's warning that a tensor is converted to a scalar. Whatever else
# took the parameter before (a weight average, gradients that are summed over processes) keeps the first one too, and
# the new one is float32 in a layer of float64.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 aft-pytorch==0.2.2
cat > "$work/program.py" <<'P'
import torch
from aft_pytorch import AFTFull, AFTLocal

LENGTH = 12


def train(kind, made_anew):
    """Loss and change of the biases after 300 steps towards the token before; the optimizer made once or anew."""
    torch.manual_seed(0)
    layer = kind(max_seqlen=LENGTH, dim=8, hidden_dim=16)
    at_first, biases = layer.wbias, layer.wbias.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    for step in range(300):
        x = torch.randn(32, LENGTH, 8, generator=torch.Generator().manual_seed(step))
        loss = (layer(x)[:, 1:] - x[:, :-1]).square().mean()
        if made_anew:
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), (layer.wbias - biases).abs().max().item(), layer.wbias is at_first


for kind, made_anew in ((AFTFull, False), (AFTLocal, False), (AFTLocal, True)):
    loss, moved, same = train(kind, made_anew)
    print(f"{kind.__name__}, optimizer made {'in every step' if made_anew else 'once'}: loss {loss:.3f}, largest change"
          f" of a bias {moved:.3f}, the parameter of before: {same}")
    assert same == (kind is AFTFull)
    assert (moved == 0) == (kind is AFTLocal and not made_anew)
layer = AFTLocal(max_seqlen=LENGTH, dim=8).double()
try:
    layer(torch.randn(1, LENGTH, 8, dtype=torch.float64))
except RuntimeError as error:
    print("float64:", error)
print("dtype of the biases after one call in float64:", layer.wbias.dtype)
assert layer.wbias.dtype == torch.float32
P
"$work/venv/bin/python" -W ignore "$work/program.py"
