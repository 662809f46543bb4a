#!/usr/bin/env bash
# transformers 5.23.0: Mamba-2 bounds its time steps by time_step_limit, documented as the accepted range of their values,
# in a call of several tokens and not in a call of one token with a cache. A model that is trained with limits is generated
# from without them: another function, whose state goes on wrong, without a word. Zamba2 and Nemotron-H are bounded below
# by time_step_min (0.001) by default and do the same as soon as a step is smaller, in a new model with some tokens
# already. With Mamba-2's default (0, inf) both agree, and so does reading the same tokens in pieces of several. This is
# the form in plain torch, which the library calls correct.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0
cat > "$work/program.py" <<'P'
import torch
import transformers
from transformers import AutoModelForCausalLM, Mamba2Config, NemotronHConfig, Zamba2Config

PROMPT, LENGTH = 12, 36
COMMON = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
MAMBA2 = dict(COMMON, num_heads=4, head_dim=16, state_size=8, n_groups=1, chunk_size=8)
CASES = (
    ("mamba2, defaults", Mamba2Config(**MAMBA2), True),
    ("mamba2, time_step_limit=(0.01, 0.1)", Mamba2Config(**MAMBA2, time_step_limit=(0.01, 0.1)), False),
    ("zamba2, defaults", Zamba2Config(
        **COMMON, intermediate_size=48, num_attention_heads=4, mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=4,
        mamba_headdim=16, chunk_size=8, num_mem_blocks=1, hybrid_layer_ids=[1], layers_block_type=["mamba", "hybrid"],
    ), False),
    ("nemotron_h, defaults", NemotronHConfig(
        **COMMON, hybrid_override_pattern="M*", mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=1,
        chunk_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=48,
    ), False),
)


def worst(model, ids, whole, size):
    """Largest difference of the logits after the prompt, read in pieces of `size` tokens, from those of one call."""
    name = "cache_params" if model.config.model_type == "mamba2" else "past_key_values"
    cache, found = model(ids[:, :PROMPT], use_cache=True)[name], []
    for place in range(PROMPT, LENGTH, size):
        found.append(model(ids[:, place : place + size], **{name: cache}, use_cache=True).logits)
    return (torch.cat(found, 1) - whole[:, PROMPT:]).abs().max().item()


print("transformers", transformers.__version__)
for name, config, right in CASES:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    ids = torch.randint(3, 64, (2, LENGTH))
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        one, several = worst(model, ids, whole, 1), worst(model, ids, whole, 12)
    limits = next(module.time_step_limit for module in model.modules() if hasattr(module, "time_step_limit"))
    print(f"{name}: limits {limits}; one token at a time differs by {one:.1e}, twelve by {several:.1e}, where the"
          f" largest logit is {whole.abs().max():.1f}")
    assert several < 1e-5, name
    assert one < 1e-5 if right else one > 1e-4, name
P
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/program.py" 2> "$work/errors" || { cat "$work/errors"; exit 1; }
