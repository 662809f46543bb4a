#!/usr/bin/env bash
# grokadamw 0.1.2: GrokAdamW keeps step counts and averages in its parameter groups, under the parameters themselves,
# and not in the state of a torch optimizer. state_dict() has them, load_state_dict() takes them, also through a file
# and weights_only=True, without a word; but the parameters of the new process are not those of the file, so that none
# is found: a resumed run begins with step 1 and averages of zero, and its groups carry the old ones along, which
# doubles what the next checkpoint holds. The library overrides both methods and documents no limit. transformers 5.23.0
# offers it as optim="grokadamw". Loading into the optimizer that was saved hides it.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 grokadamw==0.1.2
cat > "$work/program.py" <<'P'
import io
import warnings

import torch
from grokadamw import GrokAdamW

warnings.filterwarnings("ignore", category=FutureWarning)  # torch.cuda.amp.autocast
warnings.filterwarnings("ignore", message=".*CUDA is not available")


def build(make):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1).double()
    return model, make(model.parameters(), lr=0.01)


def train(model, optimizer, first, last):
    for number in range(first, last):
        x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        ((model(x) - x.sum(1, keepdim=True)) ** 2).mean().backward()
        optimizer.step()


def steps(optimizer):
    states = [group.get("state", {}) for group in optimizer.param_groups] + [optimizer.state]
    return [int(state["step"]) for each in states for state in each.values()]


for make in (torch.optim.AdamW, GrokAdamW):
    model, optimizer = build(make)
    train(model, optimizer, 0, 50)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed, continued = build(make)
    resumed.load_state_dict(weights)
    continued.load_state_dict(state)
    before = model.weight.detach().clone()
    train(model, optimizer, 50, 60)
    train(resumed, continued, 50, 60)
    moved = (model.weight - before).abs().max().item()
    apart = (model.weight - resumed.weight).abs().max().item()
    print(f"{make.__name__}, 10 steps after loading: weights {apart:.1e} from the run without a stop, which moved"
          f" {moved:.1e}; steps that were counted {steps(optimizer)}, after loading {steps(continued)}")
    if make is torch.optim.AdamW:
        assert apart == 0 and steps(continued) == [60, 60]
    else:
        assert apart > 0.1 * moved and steps(continued) == [50, 50, 10, 10]
P
"$work/venv/bin/python" "$work/program.py"
