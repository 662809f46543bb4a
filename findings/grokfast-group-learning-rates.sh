#!/usr/bin/env bash
# grokfast-pytorch 0.0.11: GrokFastAdamW has two learning rates for one number. normalize_lr, true by default, divides
# the lr beside params by 1 + grokfast_lamb, 3, to make up for the enlarged gradients, and leaves an lr that a group
# names as it is: lr=1e-3 there trains three times as fast. (The size of an Adam step does not depend on the size of the
# gradients, so the divided rate is a third of AdamW's under a steady gradient; issue 5 of its repository asks about
# that.) turn_off_grokfast() leaves lr divided. The weight decay is weight_decay times the group's lr over the divided
# one, not times lr: with README's lr=1e-4 and weight_decay=1e-2 a weight loses 1 % a step, AdamW's 10000-fold, and in a
# group with lr=1e-2 weights change sign and double in size with every step. README tells none of it. With
# normalize_lr=False the rates of the groups are those given; the decay remains.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 grokfast-pytorch==0.0.11
cat > "$work/program.py" <<'P'
import torch
from grokfast_pytorch import GrokFastAdamW


def train(kind, groups, gradient, steps, off=False, **options):
    """One weight of 1 to a group: where it ends under a steady gradient."""
    weights = [torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in groups]
    optimizer = kind([{"params": [w], **group} for w, group in zip(weights, groups)], **options)
    if off:
        optimizer.turn_off_grokfast()
    for _ in range(steps):
        for w in weights:
            w.grad = torch.full_like(w, gradient)
        optimizer.step()
    return [w.item() for w in weights]


def adamw(params, lr, weight_decay=0.0):
    return torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)


groups = [{}, {"lr": 1e-3}]
moved = {}
for name, kind, options in (("AdamW", adamw, {}), ("GrokFastAdamW", GrokFastAdamW, {}),
                            ("grokfast turned off", GrokFastAdamW, {"off": True}),
                            ("normalize_lr=False", GrokFastAdamW, {"normalize_lr": False})):
    moved[name] = [1 - w for w in train(kind, groups, 0.5, 30, lr=1e-3, **options)]
    print(f"{name}, 30 steps at lr 0.001: the group without its own lr moves by {moved[name][0]:.4f},"
          f" the one with lr=0.001 by {moved[name][1]:.4f}")
for name, expected in (("AdamW", (0.03, 0.03)), ("GrokFastAdamW", (0.01, 0.03)),
                       ("grokfast turned off", (0.01, 0.03)), ("normalize_lr=False", (0.03, 0.03))):
    assert all(abs(one - other) < 1e-6 for one, other in zip(moved[name], expected))

groups = [{}, {"lr": 1e-4}, {"lr": 1e-2}]
ends = {}
for name, kind, options in (("AdamW", adamw, {}), ("GrokFastAdamW", GrokFastAdamW, {}),
                            ("normalize_lr=False", GrokFastAdamW, {"normalize_lr": False})):
    ends[name] = train(kind, groups, 0.0, 10, lr=1e-4, weight_decay=1e-2, **options)
    print(f"{name}, 10 steps without a gradient, lr 0.0001, weight decay 0.01: a weight of 1 ends at"
          f" {ends[name][0]:.5f}; in groups with lr 0.0001 and 0.01 at {ends[name][1]:.5f} and {ends[name][2]:.5g}")
assert all(abs(end - (1 - lr * 0.01) ** 10) < 1e-9 for end, lr in zip(ends["AdamW"], (1e-4, 1e-4, 1e-2)))
assert all(abs(end / factor ** 10 - 1) < 1e-6 for end, factor in zip(ends["GrokFastAdamW"], (0.99, 0.97, -2.0)))
assert abs(ends["normalize_lr=False"][0] - 0.99 ** 10) < 1e-9 and abs(ends["normalize_lr=False"][2]) < 1e-9
P
"$work/venv/bin/python" "$work/program.py"
