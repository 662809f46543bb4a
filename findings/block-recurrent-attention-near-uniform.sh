#!/usr/bin/env bash
# block-recurrent-transformer-pytorch 0.4.4: queries and keys of recurrent layers get length 1, and their products
# should be multiplied by qk_rmsnorm_scale, 8 by default. That number is set aside and read nowhere; the products are
# divided by the root of dim_head as those without norm are. With dim_head=64, the default, they lie within 1/8 in place
# of 8, and a new recurrent layer weighs all keys almost alike, in its own attention and in those of its state: of 512
# keys the one that is the query itself, all others its opposite, weighs 0.25 % in place of all. Learned factors of
# queries and keys begin at 1 and would have to make 64 of that. The option changes no bit of any output, and nothing is
# said. Layers without the norm are right; all_layers_qk_rmsnorm=True spreads it to them.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 einops==0.8.2 beartype==0.23.1 packaging==26.2
"$work/venv/bin/pip" install --quiet --no-deps block-recurrent-transformer-pytorch==0.4.4
cat > "$work/program.py" <<'P'
import torch
from block_recurrent_transformer_pytorch import BlockRecurrentTransformer
from block_recurrent_transformer_pytorch.block_recurrent_transformer_pytorch import Attention, AttentionBlock


def block(scale):
    torch.manual_seed(0)
    layer = AttentionBlock(64, block_width=16, qk_rmsnorm=True, qk_rmsnorm_scale=scale, num_state_vectors=4)
    layer.state_container.set_next_read_state(None)
    out, _, states = layer(torch.randn(1, 16, 64))
    return out, states


same = all(torch.equal(*pair) for scale in (1, 64) for pair in zip(block(8), block(scale), strict=True))
print(f"qk_rmsnorm_scale of 1, 8 and 64: outputs and states {'the same' if same else 'others'}")
assert same

query = torch.randn(1, 1, 1, 64)
keys = torch.cat((query[0], -query[0].expand(-1, 511, -1)), dim=1)
values = torch.zeros(1, 512, 64)
values[:, 0] = 1  # the outcome is the weight of the first key
found = Attention(64, qk_rmsnorm=True)(query, keys, values).mean().item()
meant = torch.tensor([8.0] + [-8.0] * 511).softmax(0)[0].item()
print(f"one key like the query, 511 its opposite: weight of the first {found:.2%}, with products times 8 {meant:.2%}")
assert found < 0.003 and meant > 0.999

torch.manual_seed(0)
model = BlockRecurrentTransformer(num_tokens=20, dim=64, depth=3, max_seq_len=32, block_width=32,
                                  num_state_vectors=8, recurrent_layers=(2,))
calls = {}
for number, (layer, _) in enumerate(model.layers, 1):

    def note(module, args, kwargs, number=number):
        calls[number] = module, args, kwargs

    layer.attn.register_forward_pre_hook(note, with_kwargs=True)
with torch.no_grad():
    model(torch.randint(0, 20, (1, 32)))
    for number, (module, (queries, keys, _), kwargs) in list(calls.items()):
        weights = 32 * module(queries, keys, torch.eye(32)[None], **kwargs)[..., -1, :]
        low, high = weights.min().item(), weights.max().item()
        print(f"new model, layer {number}{' (recurrent)' if number == 2 else ''}: the last token weighs those before it"
              f" {low:.2f} to {high:.2f} times as much as evenly")
        assert (low > 0.9 and high < 1.1) if number == 2 else (low < 0.5 and high > 2)
P
"$work/venv/bin/python" "$work/program.py"
