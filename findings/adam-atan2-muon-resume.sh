#!/usr/bin/env bash
# adam-atan2-pytorch 0.4.1: MuonAdamAtan2 takes muon_params out of params by the difference of two sets, so that the
# order of the others is by address in memory: another one in every process. An optimizer's state_dict counts
# parameters by their order, so what one process saves another loads onto other parameters of the same shape, without a
# word (other shapes end in an error about sizes). torch refuses a set of parameters for that reason; the library's
# documentation asks for nothing. With remove_muon_params_from_params=False and the others given apart it is right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 adam-atan2-pytorch==0.4.1
cat > "$work/program.py" <<'P'
import json
import pathlib
import subprocess
import sys

import torch
from adam_atan2_pytorch import MuonAdamAtan2


def build(apart):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(12)))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    if apart:
        return model, MuonAdamAtan2(matrices, others, remove_muon_params_from_params=False)
    return model, MuonAdamAtan2(matrices, model.parameters())


def averages(model, optimizer):
    """Name of a bias: the first number of its averaged gradient."""
    return {name: optimizer.state[p]["exp_avg"][0].item() for name, p in model.named_parameters() if p.ndim < 2}


if len(sys.argv) > 1:
    what, file, apart = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3] == "apart"
    model, optimizer = build(apart)
    if what == "save":
        for number, p in enumerate(model.parameters()):
            p.grad = torch.full_like(p, number + 1.0)
        optimizer.step()
        torch.save(optimizer.state_dict(), file)
    else:
        optimizer.load_state_dict(torch.load(file))
    print(json.dumps(averages(model, optimizer)))
    sys.exit()

for way in ("apart", "removed"):
    file = sys.argv[0] + "." + way
    runs = [[sys.executable, sys.argv[0], what, file, way] for what in ("save", "load")]
    saved, loaded = (json.loads(subprocess.run(run, check=True, capture_output=True).stdout) for run in runs)
    wrong = [name for name in saved if saved[name] != loaded[name]]
    print(f"{way}: {len(wrong)} of {len(saved)} biases have the average of another after loading"
          + "".join(f"; {name} {saved[name]:.1f}, now {loaded[name]:.1f}" for name in wrong[:2]))
    assert sorted(saved.values()) == sorted(loaded.values())
    assert not wrong if way == "apart" else wrong
P
"$work/venv/bin/python" "$work/program.py"
