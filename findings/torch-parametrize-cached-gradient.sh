#!/usr/bin/env bash
# torch 2.13.0: within torch.nn.utils.parametrize.cached() the first use of a parametrized weight decides for all later
# ones whether it has a gradient. A pass under no_grad at the beginning of a training step (a target, a measurement)
# keeps the weight without its graph, and the pass that is trained takes it: backward() runs, the bias has its gradient
# and the weight has none, so that an optimizer leaves it as it is. Nothing is said, and the documentation, which calls
# the context useful where a weight is used more than once, names no such limit. weight_norm, spectral_norm and
# orthogonal are alike. Without cached(), or with the trained pass first, all have gradients. torch.autocast keeps
# weights too, asks whether a gradient is needed and gives it.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/program.py" <<'P'
import contextlib

import torch
from torch.nn.utils import parametrizations, parametrize


def trained(parametrization, context, first):
    """Whether parameters of the weight and the bias have a gradient that is not zero, and how far a step of SGD moves
    the weight."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    if parametrization is not None:
        getattr(parametrizations, parametrization)(layer)
    before, x = layer.weight.detach().clone(), torch.randn(8, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with context():
        if first == "measured":
            with torch.no_grad():
                layer(x)
        loss = layer(x).square().sum()
        if first == "trained":
            with torch.no_grad():
                layer(x)
        loss.backward()
    has = {name: p.grad is not None and bool(p.grad.any()) for name, p in layer.named_parameters()}
    optimizer.step()
    own = [has[name] for name in has if "bias" not in name]
    return any(own), has["bias"], (layer.weight.detach() - before).abs().max().item()


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


for parametrization in ("weight_norm", "spectral_norm", "orthogonal"):
    for name, context, first in (("no context", contextlib.nullcontext, "measured"),
                                 ("cached()", parametrize.cached, "trained"),
                                 ("cached()", parametrize.cached, "measured")):
        weight, bias, moved = trained(parametrization, context, first)
        print(f"{parametrization}, {name}, {first} first: gradient of the weight {weight}, of the bias {bias}; a step"
              f" moves the weight by {moved:.1e}")
        assert bias and weight == ((name, first) != ("cached()", "measured"))
        if not weight and parametrization == "weight_norm":
            assert moved < 1e-6
weight, bias, moved = trained(None, autocast, "measured")
print(f"plain layer, autocast, measured first: gradient of the weight {weight}, of the bias {bias}")
assert weight and bias
P
"$work/venv/bin/python" "$work/program.py"
