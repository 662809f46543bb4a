#!/usr/bin/env bash
# schedulefree 1.4.1: AdamWScheduleFree counts steps for a whole group of parameters, torch's AdamW for each. A
# parameter whose first gradient comes late (a layer that is unfrozen, an expert that was not chosen) is divided by a
# second moment without its correction, and its average is taken over steps in which it did not exist: the larger the
# group's count, the less of it is learned. 300 steps towards 1 from 0 give 0.99 in the weights that eval() sets, if
# they are the first, 0.90 after 1,000 steps without a gradient and 0.16 after 10,000; the weights that are trained
# overshoot. The documentation names no such limit and nothing is said. add_param_group at that moment, and train(), is
# right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 schedulefree==1.4.1
cat > "$work/program.py" <<'P'
import torch
from schedulefree import AdamWScheduleFree

RATE = 0.01


def train(kind, late, added=False):
    """First step in learning rates, largest and evaluated value of a weight on its way to 1, from step `late` on."""
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = kind([first] if added else [first, second], lr=RATE, weight_decay=0.0)
    free = isinstance(optimizer, AdamWScheduleFree)
    if free:
        optimizer.train()
    values = []
    for step in range(late + 300):
        if step == late and added:
            optimizer.add_param_group({"params": [second]})
            optimizer.train()
        optimizer.zero_grad()
        sum((weight - 1).square().sum() / 2 for weight in ([first] if step < late else [first, second])).backward()
        optimizer.step()
        if step >= late:
            values.append(second.item())
    if free:
        optimizer.eval()
    return values[0] / RATE, max(values), second.item()


CASES = (
    (torch.optim.AdamW, 0, False, (1.00, 1.00, 1.00)),
    (torch.optim.AdamW, 10_000, False, (1.00, 1.00, 1.00)),
    (AdamWScheduleFree, 0, False, (1.00, 1.04, 0.99)),
    (AdamWScheduleFree, 100, False, (1.07, 1.20, 1.18)),
    (AdamWScheduleFree, 1_000, False, (2.54, 1.23, 0.90)),
    (AdamWScheduleFree, 10_000, False, (3.17, 0.90, 0.16)),
    (AdamWScheduleFree, 10_000, True, (1.00, 1.04, 0.99)),
)
for kind, late, added, expected in CASES:
    found = train(kind, late, added)
    print("{}, first gradient at step {}{}: first step {:.2f} learning rates, largest {:.2f}, evaluated {:.2f}".format(
        kind.__name__, late, ", added then" if added else "", *found))
    assert all(abs(a - b) < 0.01 for a, b in zip(found, expected)), found
P
"$work/venv/bin/python" "$work/program.py"
