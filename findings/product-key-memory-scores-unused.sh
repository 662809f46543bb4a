#!/usr/bin/env bash
# product-key-memory 0.3.0: PKM(concat_values_and_combine=True), the way to smaller values whose heads are joined by a
# linear layer, adds up the values that it found without their weights: the scores, and the softmax over them, are
# computed and left. Which values are found still depends on queries and keys, but neither has a gradient, nor has the
# norm of the queries, so that the memory looks up by random vectors for good while its values are trained. An optimizer
# skips what has no gradient; nothing is said. Keys 100 times as long give the same output, where they sharpen the
# weights of the default. attn_dropout and non_competitive_gates do nothing with it. The default has all gradients.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 product-key-memory==0.3.0 colt5-attention==0.11.2
cat > "$work/program.py" <<'P'
import copy

import torch
from product_key_memory import PKM

WIDTH = 32
torch.set_num_threads(1)


def memory(joined, **options):
    torch.manual_seed(0)
    return PKM(WIDTH, heads=4, num_keys=16, topk=8, dim_head=16, concat_values_and_combine=joined, **options)


def trained(model):
    """Names of the parameters that 50 steps of Adam moved."""
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    target = torch.nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(50):
        x = torch.randn(8, 16, WIDTH)
        loss = (model(x) - target(x).tanh()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


torch.manual_seed(0)
x = torch.randn(2, 5, WIDTH)
for joined in (False, True):
    model = memory(joined)
    longer = copy.deepcopy(model)
    with torch.no_grad():
        longer.keys *= 100
        change = (longer(x) - model(x)).abs().max() / model(x).abs().max()
        others = {f"{option}": (memory(joined, **{option: value})(x) - model(x)).abs().max()
                  for option, value in (("attn_dropout", 0.5), ("non_competitive_gates", True))}
    moved = trained(model)
    still = {name for name, _ in model.named_parameters()} - moved
    print(f"concat_values_and_combine={joined}: not trained: {sorted(still)}; keys 100 times as long change outputs by"
          f" {change:.2f} of themselves; options: { {name: round(float(by), 2) for name, by in others.items()} }")
    assert still == ({"keys", "to_queries.weight", "norm.weight", "norm.bias"} if joined else set())
    assert change == 0 if joined else change > 0.1
    assert all((by == 0) == joined for by in others.values())
P
"$work/venv/bin/python" "$work/program.py"
