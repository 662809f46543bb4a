#!/usr/bin/env bash
# hourglass-transformer-pytorch 0.0.6: the attention that brings the shortened sequence back to full length looks at
# nothing. attn_resampling, true by default, has a layer of attention before the shortened layers, where a pooled token
# chooses among the tokens of its group, and one after them, where every token of a group is given one key to choose
# from: the group's own. A softmax over one number is 1, so that all tokens of a group are handed the same vector
# whatever they ask. The weight of the queries and the norm in front of them are without any effect and get a gradient
# of exactly zero for ever, in every nested hourglass too; an optimizer's weight decay is all that moves them. Nothing
# is said. The layer before the shortened ones trains whole.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 hourglass-transformer-pytorch==0.0.6
cat > "$work/program.py" <<'P'
import torch
from torch.nn.functional import cross_entropy
from hourglass_transformer_pytorch import HourglassTransformerLM

SIZES = dict(num_tokens=50, dim=32, max_seq_len=64, heads=2, dim_head=16)
QUERIES = "layers.0.0.fn.to_q.weight"


def build(**settings):
    torch.manual_seed(0)
    return HourglassTransformerLM(**SIZES, **settings).double()


def handed(model, ids):
    """What the attention after the shortened layers adds to each token."""
    got = []
    attention = model.transformer.attn_resampling_post_valley.layers[0][0].fn
    hook = attention.register_forward_hook(lambda module, inputs, output: got.append(output))
    model(ids)
    hook.remove()
    return got[0]


ids = torch.randint(0, 50, (2, 65), generator=torch.Generator().manual_seed(1))
inputs, targets = ids[:, :-1], ids[:, 1:]
for name, settings in (
    ("shortened by 2", dict(shorten_factor=2, depth=(1, 1, 1))),
    ("shortened by 4, linear", dict(shorten_factor=4, depth=(1, 1, 1), updown_sample_type="linear")),
    ("shortened by 4, not causal", dict(shorten_factor=4, depth=(1, 1, 1), causal=False)),
    ("nested", dict(shorten_factor=(2, 2), depth=(1, (1, 1, 1), 1))),
):
    model = build(**settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(model(inputs).transpose(1, 2), targets).backward()
        optimizer.step()
    still = [key for key, value in model.named_parameters() if torch.equal(value, start[key])]
    changes = {}
    with torch.no_grad():
        before = model(inputs)
        for which in ("pre", "post"):
            changed = build(**settings)
            changed.load_state_dict(model.state_dict())
            changed.get_parameter(f"transformer.attn_resampling_{which}_valley.{QUERIES}").normal_(0, 10)
            changes[which] = (changed(inputs) - before).abs().max().item()
        added = handed(model, inputs)
    ending = {key.split("attn_resampling_")[1] for key in still}
    print(f"{name}: after 20 steps {len(still)} of {len(start)} parameters are as they were, all of"
          f" {', '.join(sorted(ending))};"
          f" random queries before the shortened layers change the logits by {changes['pre']:.2f}, after them by"
          f" {changes['post']:.2f}; vectors handed to a group are {(added - added[:, :1]).abs().max():.1f} apart")
    assert ending == {f"post_valley.layers.0.0.{part}" for part in ("norm.weight", "norm.bias", "fn.to_q.weight")}
    assert len(still) == (6 if name == "nested" else 3)
    assert changes["pre"] > 1e-3 and changes["post"] == 0 and torch.equal(added, added[:, :1].expand_as(added))
P
"$work/venv/bin/python" "$work/program.py"
