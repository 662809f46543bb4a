#!/usr/bin/env bash
# FLASH-pytorch 0.1.9: GAU(causal=True) divides the products of queries and keys, and its position biases, by the number
# of tokens of the row, so that what it gives a token depends on how many tokens come after it. Its attention is the
# square of these numbers: a row of twice the length has exactly a quarter of the outputs, before bias and residual, for
# all tokens that were there before. No token that is exchanged changes an earlier output, so that a test for leaks with
# rows of one length passes. A layer that is trained on rows of 512 tokens and generates from 16 gives 1,024 times as
# much there. FLASH of the same package divides by its constant group size and is the same for every length.
# rel_pos_bias=False, GAU's default, does nothing either: the biases are made and added all the same. Nothing is said of
# both.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 FLASH-pytorch==0.1.9 einops==0.8.2 \
    rotary-embedding-torch==0.9.1
cat > "$work/program.py" <<'P'
import torch
from flash_pytorch import FLASH, GAU

WIDTH, TOKENS = 32, 64
torch.set_num_threads(1)
torch.manual_seed(0)
layers = {"GAU": GAU(dim=WIDTH, query_key_dim=16, causal=True, add_residual=False),
          "FLASH": FLASH(dim=WIDTH, query_key_dim=16, causal=True, group_size=16)}
x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
other = torch.cat((x[:, :-1], torch.randn(2, 1, WIDTH)), 1)
for name, layer in layers.items():
    layer.double().eval()

    def added(x, layer=layer, name=name):
        """What the layer adds to its residual, without the bias of its last projection."""
        with torch.no_grad():
            y = layer(x)
            return y - layer.to_out[0].bias if name == "GAU" else y - x - layer.to_out.bias

    whole = added(x)
    leak = (added(other) - whole)[:, :-1].abs().max()
    size, ratios = whole.abs().max(), {}
    for length in (8, 16, 32, 48, 63):
        expected = (TOKENS / length) ** 2 if name == "GAU" else 1.0
        alone = added(x[:, :length])
        ratios[length] = round(float(alone.norm() / whole[:, :length].norm()), 3)
        assert (alone - expected * whole[:, :length]).abs().max() < 1e-12 * expected * size
    print(f"{name}: another last token changes earlier outputs by {leak:.0e}; outputs of the first tokens alone, as a"
          f" multiple of those in a row of {TOKENS}: {ratios}")
    assert leak == 0
assert "rel_pos_bias.relative_attention_bias.weight" in dict(GAU(dim=WIDTH, rel_pos_bias=False).named_parameters())
before = layers["GAU"](x)
with torch.no_grad():
    layers["GAU"].rel_pos_bias.relative_attention_bias.weight.zero_()
change = (layers["GAU"](x) - before).abs().max() / before.abs().max()
print(f"position biases of GAU, which rel_pos_bias=False leaves on: without them outputs change by"
      f" {change:.2f} of the largest")
assert change > 0.1
P
"$work/venv/bin/python" "$work/program.py"
