#!/usr/bin/env bash
# torch-optimi 0.3.3: with gradient_release=True, documented as fully compatible with learning rate schedulers, a run
# that is resumed keeps the learning rate of its checkpoint for good. The optimizer puts the parameter group into the
# state of each parameter and reads the learning rate there; load_state_dict of torch makes copies of what a state
# holds, so that schedulers change groups that nothing reads any more, as do hands that change weight_decay.
# param_groups and get_last_lr() show the schedule. Nothing is said. So it is with all seven optimizers asked here;
# without gradient_release each goes on to the last bit. Putting the groups back into the states after loading helps.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 packaging==26.2 torch-optimi==0.3.3
cat > "$work/program.py" <<'P'
import io

import optimi
import torch


def build(make, release):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1).double()
    optimizer = make(model.parameters(), lr=0.01, gradient_release=release)
    if release:
        optimi.prepare_for_gradient_release(model, optimizer)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


def train(model, optimizer, scheduler, first, last):
    for number in range(first, last):
        x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        ((model(x) - x.sum(1, keepdim=True)) ** 2).mean().backward()
        optimizer.step()  # does nothing with gradient_release: backward has made the step
        optimizer.zero_grad()
        scheduler.step()


def resumed(make, release, groups_put_back=False):
    """How far 10 steps after loading lead from the run without a stop, of what that moved; the last rate, both ways."""
    run = build(make, release)
    train(*run, 0, 10)
    file = io.BytesIO()
    torch.save([each.state_dict() for each in run], file)
    file.seek(0)
    again = build(make, release)
    for each, state in zip(again, torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(state)
    model, optimizer, scheduler = again
    if groups_put_back:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["group"] = group
    before = model.weight.detach().clone()
    train(*run, 10, 20)
    train(*again, 10, 20)
    moved = (run[0].weight - before).abs().max()
    read = optimizer.state[model.weight]["group"] if release else optimizer.param_groups[0]
    return ((run[0].weight - model.weight).abs().max() / moved).item(), scheduler.get_last_lr()[0], read["lr"]


for name in ("SGD", "Adam", "AdamW", "Adan", "Lion", "RAdam", "StableAdamW"):
    make = getattr(optimi, name)
    without, with_release = resumed(make, False), resumed(make, True)
    mended = resumed(make, True, groups_put_back=True)
    print(f"{name}: 10 steps after loading, weights off by {without[0]:.0%} of their way, with gradient_release by"
          f" {with_release[0]:.0%}; learning rate {with_release[1]:.3f} by the schedule, {with_release[2]:.3f} in use;"
          f" groups put back {mended[0]:.0%}")
    assert without == (0, 0, 0) and with_release[0] > 0.5 and with_release[1:] == (0, 0.005) and mended == (0, 0, 0)
P
"$work/venv/bin/python" "$work/program.py"
