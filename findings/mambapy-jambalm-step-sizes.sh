#!/usr/bin/env bash
# mambapy 1.2.0: JambaLM takes dt_min, dt_max and dt_scale, which say how long the states of its Mamba layers remember,
# and a new model is the same, bit for bit, whatever they are; with dt_init="constant" the weights that it names are
# random all the same. The layers are made with the options; then JambaLM draws every linear layer's weight anew and
# sets its bias to zero, and the bias of dt_proj, which holds the step sizes, is one of them. All channels begin at a
# step of log 2 = 0.69, seven times the default upper limit: the slowest state halves with a token or so, where the
# limits 0.001 and 0.1 keep half for 7 to 693 tokens. Nothing is said. Jamba, the same layers without head and
# embedding, obeys the options, and copying its biases over gives JambaLM them. (Loading a trained model replaces all.)
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 mambapy==1.2.0
cat > "$work/program.py" <<'P'
import torch
from torch.nn.functional import softplus
from mambapy.jamba import Jamba, JambaLM, JambaLMConfig

SIZES = dict(d_model=64, n_layers=4, mlp_size=64, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
             attn_layer_offset=1, attn_layer_period=4, vocab_size=50)


def build(kind, **options):
    torch.manual_seed(0)
    return kind(JambaLMConfig(**SIZES, **options)).eval()


def steps(model):
    biases = [value for name, value in model.named_parameters() if name.endswith("dt_proj.bias")]
    return softplus(torch.cat(biases).detach())


def same(one, two):
    other = two.state_dict()
    return all(torch.equal(value, other[name]) for name, value in one.state_dict().items())


def late(model, back=32):
    """How much another token 32 places before changes what the first Mamba layer gives to the last token."""
    layer = model.double().jamba.layers[0].mamba
    with torch.no_grad():
        x = torch.randn(1, 64, layer.config.d_model, dtype=torch.float64,
                        generator=torch.Generator().manual_seed(1))
        y = x.clone()
        y[:, -1 - back] *= -1
        return ((layer(x) - layer(y)).abs()[0, -1].max() / layer(x)[0, -1].abs().max()).item()


for kind in (Jamba, JambaLM):
    first = build(kind)
    for options in ({}, {"dt_min": 0.2, "dt_max": 0.5}, {"dt_min": 1e-4, "dt_max": 1e-3}, {"dt_scale": 8.0}):
        model = build(kind, **options)
        low, high = steps(model).min().item(), steps(model).max().item()
        print(f"{kind.__name__} {options or 'defaults'}: steps of {low:.4f} to {high:.4f};"
              f" all weights as with the defaults: {same(model, first)}")
        limits = options.get("dt_min", 0.001), options.get("dt_max", 0.1)
        if kind is Jamba:
            assert limits[0] * 0.99 <= low < high <= limits[1] * 1.01 and same(model, first) == (not options)
        else:
            assert abs(low - 0.6931) < 1e-4 and abs(high - 0.6931) < 1e-4 and same(model, first)
constant = build(JambaLM, dt_init="constant").get_parameter("jamba.layers.0.mamba.dt_proj.weight")
print(f"JambaLM dt_init='constant': weights of dt_proj from {constant.min():.3f} to {constant.max():.3f}")
assert constant.std() > 0.01

given, repaired = build(JambaLM), build(JambaLM)
source = build(Jamba)
for name, value in source.named_parameters():
    if name.endswith("dt_proj.bias"):
        repaired.get_parameter("jamba." + name).data.copy_(value)
wrong, right = late(given), late(repaired)
print(f"another token 32 places before changes the first layer's output by {wrong:.0e} of its size;"
      f" with the biases of Jamba by {right:.0e}")
assert wrong < right / 100
P
"$work/venv/bin/python" "$work/program.py"
