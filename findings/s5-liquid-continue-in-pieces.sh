#!/usr/bin/env bash
# s5-pytorch 0.2.1: S5(liquid=True), whose decay depends on the input, goes on from a state that it handed out
# (return_state=True, state=...) with the decay that does not: the first token after the seam forgets as in an S5 that
# is not liquid, and all that follows is another function than one call over the whole. The step form, forward_rnn, is
# right, and so is liquid=False. With bidir=True a liquid layer is liquid in one direction only: the other gives what
# the same weights give without liquid. Nothing is said, and the documentation speaks of neither.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 s5-pytorch==0.2.1
cat > "$work/program.py" <<'P'
import torch
from s5 import S5

x = torch.randn(2, 48, 16, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    for liquid in (False, True):
        torch.manual_seed(0)
        layer = S5(16, 16, liquid=liquid, dt_min=0.1, dt_max=1.0)
        whole = layer(x)
        apart = {}
        for cut in (1, 24, 47):
            _, state = layer(x[:, :cut], return_state=True)
            apart[cut] = (layer(x[:, cut:], state=state) - whole[:, cut:]).abs().max().item()
        state, steps = torch.zeros(16, dtype=torch.complex64), []
        for token in x[0]:
            y, state = layer.seq.forward_rnn(token, state)
            steps.append(y)
        stepped = (torch.stack(steps) - whole[0]).abs().max().item()
        print(f"liquid={liquid}: off after a seam at " + ", ".join(f"{cut} by {off:.1e}" for cut, off in apart.items())
              + f"; step by step by {stepped:.1e}; the largest output is {whole.abs().max():.2f}")
        assert stepped < 1e-4 and all((off > 1e-3) == liquid for off in apart.values())
    layer = S5(16, 16, liquid=True, bidir=True, dt_min=0.1, dt_max=1.0)
    readout = layer.seq.C.clone()
    for direction, other in (("forward", slice(16, 32)), ("backward", slice(0, 16))):
        layer.seq.C.copy_(readout)
        layer.seq.C[:, other] = 0
        layer.seq.liquid = True
        liquid = layer(x)
        layer.seq.liquid = False
        apart = (layer(x) - liquid).abs().max().item()
        print(f"bidir=True, {direction} states alone: liquid and not liquid differ by {apart:.1e}")
        assert (apart > 1e-2) == (direction == "forward")
P
"$work/venv/bin/python" "$work/program.py"
