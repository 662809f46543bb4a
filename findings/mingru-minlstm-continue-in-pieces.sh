#!/usr/bin/env bash
# minGRU-pytorch 0.2.1: minLSTM takes the state that it handed on and goes on rightly by one token a call. By several
# tokens a call it goes on from another state: the map that makes hidden values positive, x + 0.5 above 0, is behind the
# state already and is applied to it again. The first piece, without a state, is right, so outputs of text in pieces are
# those of one call up to the first seam and up to a third of their size off after it; nothing is said. Undoing the map
# before each call helps. minGRU of the same package, with the same arguments, is right in every way.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 minGRU-pytorch==0.2.1
cat > "$work/program.py" <<'P'
import torch
from minGRU_pytorch import minGRU
from minGRU_pytorch.minLSTM import minLSTM

TOKENS = 20


def before_map(state):
    """What the map of minLSTM (x + 0.5 above 0, its sigmoid below) makes this state of."""
    return torch.where(state >= 0.5, state - 0.5, state.logit())


def in_pieces(layer, x, size, undo=lambda state: state):
    """Outputs of calls of ``size`` tokens, each with the state before it, and the last state."""
    outputs, state = [], None
    for start in range(0, TOKENS, size):
        given = None if state is None else undo(state)
        output, state = layer(x[:, start : start + size], given, return_next_prev_hidden=True)
        outputs.append(output)
    return torch.cat(outputs, 1), state


for kind in (minGRU, minLSTM):
    torch.manual_seed(0)
    layer, x = kind(16).double(), torch.randn(2, TOKENS, 16, dtype=torch.float64)
    with torch.no_grad():
        whole, last = layer(x, return_next_prev_hidden=True)
        for size in (1, 2, 5, 10):
            found, state = in_pieces(layer, x, size)
            off = (found - whole).abs().amax((0, 2))
            print(f"{kind.__name__}, {size} tokens a call: outputs off by up to {off.max():.1e} of {whole.max():.2f},"
                  f" before the first seam {off[:size].max():.0e}; last state by {(state - last).abs().max():.1e}")
            wrong = kind is minLSTM and size > 1
            assert off[:size].max() < 1e-12 and (off.max() > 0.2 if wrong else off.max() < 1e-12)
            if wrong:
                found, _ = in_pieces(layer, x, size, undo=before_map)
                print(f"    given what the map makes the states of: {(found - whole).abs().max():.0e}")
                assert (found - whole).abs().max() < 1e-12
P
"$work/venv/bin/python" "$work/program.py"
