#!/usr/bin/env bash
# torchrecurrent 0.2.5: the state that tauGRU hands on is not its state. The layer has a term that reads its hidden
# state of `delay` steps before; it keeps those in a list that begins with zeros in every call and hands on the last
# hidden state alone. Text that is read in pieces, each with the state that came before it, has other outputs than in
# one call from the seam on, here by a third of the largest and more; with a call for each token the weights that read
# the earlier state do nothing at all. So it is with the default delay of 1 too, and nothing is said. The docstring
# calls zero what lies before the beginning of the sequence, and gives h_0 and h_n the words that the other layers have.
# The 40 other layers of the package go on from theirs exactly.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchrecurrent==0.2.5
cat > "$work/program.py" <<'P'
import torch
import torchrecurrent


def off(layer, x, size):
    """Largest difference between the outputs of one call and of calls of ``size`` tokens, and of the first call's."""
    with torch.no_grad():
        whole, _ = layer(x)
        pieces, state = [], None
        for piece in x.split(size):
            output, state = layer(piece, state)
            pieces.append(output)
    differences = (torch.cat(pieces) - whole).abs().amax((1, 2)) / whole.abs().max()
    return differences.max(), differences[:size].max()


def drawn(kind, **options):
    torch.manual_seed(0)
    layer = kind(8, 8, num_layers=2, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer, torch.randn(20, 3, 8, dtype=torch.float64)


layers = [getattr(torchrecurrent, name) for name in torchrecurrent.__all__ if not name.endswith("Cell")]
exact = [kind.__name__ for kind in layers if max(off(*drawn(kind), size)[0] for size in (1, 4)) < 1e-12]
print(f"{len(layers)} layers, {len(exact)} of them go on exactly")
assert len(layers) == 41 and sorted({kind.__name__ for kind in layers} - set(exact)) == ["tauGRU"]
for delay in (1, 3):
    for size in (1, 4, 10):
        most, before = off(*drawn(torchrecurrent.tauGRU, delay=delay), size)
        print(f"tauGRU, delay {delay}, {size} tokens a call: outputs off by up to {most:.0%} of the largest,"
              f" {before:.0e} before the first seam")
        assert before < 1e-12 and most > 0.03
layer, x = drawn(torchrecurrent.tauGRU)
whole, state = [], None
with torch.no_grad():
    for token in x.split(1):
        output, state = layer(token, state)
        whole.append(output)
    for cell in layer.cells:  # the weights by which the earlier state is read
        cell.weight_hh[8:16] *= 5
    again, state = [], None
    for token in x.split(1):
        output, state = layer(token, state)
        again.append(output)
same = torch.equal(torch.cat(whole), torch.cat(again))
print(f"one token a call, weights of the earlier state five times as large: outputs {'the same' if same else 'others'}")
assert same and not torch.equal(layer(x)[0], drawn(torchrecurrent.tauGRU)[0](x)[0])
P
"$work/venv/bin/python" "$work/program.py"
