#!/usr/bin/env bash
# ema-pytorch 0.8.3: KarrasEMA and PostHocEMA take sigma_rel (or gamma), how far back the average reaches as a share of
# the run. update_every, documented as "how often to actually update, to save on compute", changes that: each update
# has the decay of one step, whatever the steps since the last one. With 10, as in README, a parameter that grows
# evenly to 1 has the average 0.44 where sigma_rel=0.1 means 0.89; with the default of 100 it is 0.07, almost the start
# of training. The averages that are synthesized afterwards are wrong too. With update_every=1 both are right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 ema-pytorch==0.8.3
cat > "$work/program.py" <<'P'
import sys

import torch
from ema_pytorch import KarrasEMA, PostHocEMA
from ema_pytorch.post_hoc_ema import sigma_rel_to_gamma

STEPS = 10_000


def train(model, average):
    """The weight is t / STEPS after step t."""
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            model.weight.fill_(step / STEPS)
        average.update()


def true(sigma_rel):
    """Mean of t / STEPS under weights proportional to t ** gamma (the paper's equation 2)."""
    gamma = sigma_rel_to_gamma(sigma_rel)
    t = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
    return ((t**gamma * t).sum() / (t**gamma).sum()).item()


for every, expected in ((1, true(0.1)), (10, 0.442), (100, 0.073)):
    model = torch.nn.Linear(1, 1, bias=False)
    average = KarrasEMA(model, sigma_rel=0.1, **({} if every == 100 else {"update_every": every}))
    assert average.update_every == every
    train(model, average)
    found = average.ema_model.weight.item()
    print(f"update_every={every}: average {found:.3f}, true {true(0.1):.3f}")
    assert abs(found - expected) < 2e-3
for every in (1, 10):
    model = torch.nn.Linear(1, 1, bias=False)
    averages = PostHocEMA(model, sigma_rels=(0.05, 0.28), update_every=every, checkpoint_every_num_steps=1000,
                          checkpoint_folder=f"{sys.argv[1]}/{every}", checkpoint_dtype=torch.float32)
    train(model, averages)
    found = averages.synthesize_ema_model(sigma_rel=0.15).ema_model.weight.item()
    print(f"update_every={every}: synthesized for sigma_rel=0.15 {found:.3f}, true {true(0.15):.3f}")
    assert (abs(found - true(0.15)) < 0.01) == (every == 1)
P
"$work/venv/bin/python" "$work/program.py" "$work/checkpoints"
