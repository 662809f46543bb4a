#!/usr/bin/env bash
# torch 2.13.0: Adam, AdamW, SGD and Adagrad with fused=True on a CPU read weights, gradients and what the optimizer keeps
# in the order in which each lies in memory and ask nobody whether the orders are alike. Of tensors that are laid out
# differently, which is valid and right without fused, other elements are put together, without a word. Two ways there: a
# weight that lies by columns (Q of torch.linalg.qr does) and a gradient that was summed over processes in one flat vector
# and handed back as a view of it; and a state_dict from a run whose weight lay by columns that is loaded where it lies by
# rows, since load_state_dict keeps the layout of what it loads. A gradient that backward() makes lies as its weight does,
# so that a short test passes. The documentation names no such condition.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/program.py" <<'P'
import io

import torch

SIZE, STEPS = 16, 20
KINDS = (
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.Adam, {"lr": 0.01}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.Adagrad, {"lr": 0.01}),
)


def build(values, kind, options, fused):
    weight = torch.nn.Parameter(values.clone())  # a clone lies as its original does
    return weight, kind([weight], fused=fused, **options)


def train(weight, optimizer, first, last, flat=False):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs, targets = torch.randn(2, 8, SIZE, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        (inputs @ weight - targets).square().mean().backward()
        if flat:
            weight.grad = torch.cat([weight.grad.reshape(-1)]).view(SIZE, SIZE)  # the same numbers
        optimizer.step()


torch.manual_seed(0)
columns = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64)).Q
rows = columns.contiguous()
print(f"torch {torch.__version__}")
assert columns.stride() == (1, SIZE) and rows.stride() == (SIZE, 1) and torch.equal(rows, columns)
for kind, options in KINDS:
    expected, optimizer = build(rows, kind, options, False)
    train(expected, optimizer, 0, STEPS)
    moved = (expected - rows).abs().max()
    for fused in (False, True):
        found = {}
        for name, start, flat in (
            ("by rows", rows, False),
            ("by rows, flat gradients", rows, True),
            ("by columns", columns, False),
            ("by columns, flat gradients", columns, True),
        ):
            weight, optimizer = build(start, kind, options, fused)
            train(weight, optimizer, 0, STEPS, flat)
            found[name] = ((weight - expected).abs().max() / moved).item()

        weight, optimizer = build(columns, kind, options, fused)
        train(weight, optimizer, 0, STEPS // 2)
        file = io.BytesIO()
        torch.save((weight.detach(), optimizer.state_dict()), file)
        file.seek(0)
        saved, state = torch.load(file)
        weight, optimizer = build(torch.zeros_like(rows), kind, options, fused)
        weight.data.copy_(saved)
        optimizer.load_state_dict(state)
        train(weight, optimizer, STEPS // 2, STEPS)
        found["saved by columns, resumed by rows"] = ((weight - expected).abs().max() / moved).item()

        wrong = [name for name, apart in found.items() if apart > 1e-9]
        print(f"{kind.__name__}, fused={fused}, weights after {STEPS} steps, apart by what share of the way they went: "
              + "; ".join(f"{name} {apart:.0e}" for name, apart in found.items()))
        assert wrong == (["by columns, flat gradients", "saved by columns, resumed by rows"] if fused else []), wrong
        assert all(found[name] > 0.1 for name in wrong), found
P
"$work/venv/bin/python" "$work/program.py"
