#!/usr/bin/env bash
# linear-attention-transformer 0.19.1: ff_dropout and ff_glu, which README explains as dropout and GLU of the
# feedforward and sets in its example, reach no layer of that model, causal or not: its feedforwards are built without
# any option. The layers that attend_axially=True and receives_context=True add have both. attn_dropout reaches heads
# with local attention alone, of which there are none by default. A model trained with 0.9 of both dropouts has, bit for
# bit, the weights of one trained without; attn_layer_dropout works, so that training looks regularised. Nothing is
# said.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 einops==0.8.2 axial-positional-embedding==0.3.12 \
    linformer==0.2.3 local-attention==1.11.2 product-key-memory==0.3.0 linear-attention-transformer==0.19.1
cat > "$work/program.py" <<'P'
import torch
from linear_attention_transformer import LinearAttentionTransformerLM

tokens = torch.randint(0, 20, (1, 64))


def build(**options):
    torch.manual_seed(0)
    return LinearAttentionTransformerLM(num_tokens=20, dim=32, heads=4, depth=2, max_seq_len=64,
                                        local_attn_window_size=16, **options)


def random(**options):
    """Whether two calls in training give different scores."""
    model = build(**options).train()
    return not torch.equal(model(tokens), model(tokens))


local = {"n_local_attn_heads": 4}
axial = {"attend_axially": True}
for causal in (True, False):
    rows = {name: random(causal=causal, **{name: 0.9}) for name in ("ff_dropout", "attn_dropout", "attn_layer_dropout")}
    rows["attn_dropout, local heads"] = random(causal=causal, attn_dropout=0.9, **local)
    rows["ff_dropout, axial layers"] = random(causal=causal, ff_dropout=0.9, **axial)
    print(f"causal={causal}, each 0.9: scores in training vary with"
          f" {', '.join(f'{name}: {found}' for name, found in rows.items())}")
    assert list(rows.values()) == [False, False, True, True, True]
parameters = [sum(each.numel() for each in build(causal=True, ff_glu=glu).parameters()) for glu in (False, True)]
print(f"parameters without and with ff_glu: {parameters[0]}, {parameters[1]}")
assert parameters[0] == parameters[1]


def trained(**options):
    model = build(causal=True, **options).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(20):
        row = torch.randint(0, 20, (4, 65), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(row[:, :-1]).transpose(1, 2), row[:, 1:]).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


pairs = zip(trained(), trained(ff_dropout=0.9, attn_dropout=0.9), strict=True)
same = all(torch.equal(*pair) for pair in pairs)
print(f"weights after 20 steps with 0 and with 0.9 of both: {'the same' if same else 'others'}")
assert same
P
"$work/venv/bin/python" "$work/program.py"
