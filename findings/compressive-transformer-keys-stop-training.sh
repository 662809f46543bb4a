#!/usr/bin/env bash
# compressive-transformer-pytorch 0.4.0: a training step that compresses memories ends the training of the keys and
# values of that layer. To keep its reconstruction loss off them SelfAttention calls detach_() on the weight of to_kv
# itself, which sets requires_grad of the parameter to False, for good: from the second segment of the first row on
# (with the default lengths) there is no gradient, the optimizer leaves the weight as it is, and the other weights, to_q
# among them, go on. Nothing is said. What is dropped is three times the gradient of to_q here. A resumed run trains
# them for one more segment, since a new model has the flag again. requires_grad_(True) on these weights after each
# call, before backward, helps. Rows of one segment compress nothing and train all.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 compressive-transformer-pytorch==0.4.0 mogrifier==0.0.5
cat > "$work/program.py" <<'P'
import warnings

import torch
from compressive_transformer_pytorch import AutoregressiveWrapper, CompressiveTransformer

SEGMENT, WORDS = 16, 12


def train(rows, helped=False):
    """Kinds of weights that each row's step moved, and the gradients after the last, as a share of that of to_q."""
    torch.manual_seed(0)
    model = AutoregressiveWrapper(CompressiveTransformer(num_tokens=WORDS, dim=32, seq_len=SEGMENT, depth=2, heads=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    moved = []
    for row in rows:
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        for loss, auxiliary, _ in model(row, return_loss=True):
            if helped:
                for name, weight in model.named_parameters():
                    weight.requires_grad_(True)
            (loss + auxiliary).backward()
        sizes = {kind: sum(float(weight.grad.norm()) for name, weight in model.named_parameters()
                           if kind in name and weight.grad is not None) for kind in ("to_q.", "to_kv.")}
        optimizer.step()
        optimizer.zero_grad()
        moved.append({name.split(".")[-2] for name, weight in model.named_parameters()
                      if not torch.equal(weight, before[name])})
    return moved, sizes["to_kv."] / sizes["to_q."]


def rows(segments, steps=30):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(WORDS, (4, SEGMENT * segments + 1), generator=generator) for _ in range(steps)]


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for segments, helped in ((1, False), (4, False), (4, True)):
        moved, share = train(rows(segments), helped)
        trained = sum("to_kv" in kinds for kinds in moved)
        others = sum({"to_q", "to_out", "w1", "w2"} <= kinds for kinds in moved)
        print(f"rows of {segments} segments{', flag set again' if helped else ''}: to_kv moved in {trained} of 30"
              f" steps, to_q and others in {others}; last gradient of to_kv {share:.2f} of that of to_q")
        assert others == 30
        assert trained == (1 if segments > 1 and not helped else 30)
        assert (share == 0) == (segments > 1 and not helped)
assert not said
P
"$work/venv/bin/python" "$work/program.py"
