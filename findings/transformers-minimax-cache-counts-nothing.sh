#!/usr/bin/env bash
# transformers 5.23.0: MiniMax asks its cache how many tokens it holds, and the answer is that of the first layer. Where that
# is a layer of linear attention, which layer_types may choose, it is 0 for ever: one more token without position_ids,
# which are optional, is rotated as if it were the first, and several more tokens are wrong with position_ids too, since
# the mask is one for an empty cache. A prompt that is read in pieces, and tokens that were drafted, have other logits than in
# one call, without an error or a word. generate, which passes positions and one token at a time, is right, and so is all
# where the first layer is full attention, as it is by default.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0
cat > "$work/program.py" <<'P'
import torch
import transformers
from transformers import MiniMaxConfig, MiniMaxForCausalLM

PROMPT, LENGTH = 12, 24
FULL, LINEAR = "full_attention", "linear_attention"
print("transformers", transformers.__version__)
for types in ([FULL, LINEAR, FULL, LINEAR], [LINEAR, FULL, LINEAR, FULL]):
    torch.manual_seed(0)
    config = MiniMaxConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, layer_types=types, block_size=8, num_local_experts=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )
    model = MiniMaxForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.randint(3, 64, (2, LENGTH))
    places = torch.arange(LENGTH)[None].expand(2, -1)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        wrong = []
        for count in (1, 2, 12):
            for given in (False, True):
                cache = model(ids[:, :PROMPT], use_cache=True).past_key_values
                after = slice(PROMPT, PROMPT + count)
                options = {"position_ids": places[:, after]} if given else {}
                found = model(ids[:, after], past_key_values=cache, use_cache=True, **options).logits
                apart = (found - whole[:, after]).abs().max().item()
                print(f"{types[0]} first, {count} after {PROMPT}, {'with' if given else 'without'} position_ids:"
                      f" differ by {apart:.1e} where the largest logit is {whole.abs().max():.1f}")
                if apart > 0.5:
                    wrong.append((count, given))
                else:
                    assert apart < 1e-3
        length = model(ids[:, :PROMPT], use_cache=True).past_key_values.get_seq_length()
        generated = [
            model.generate(ids[:, :PROMPT], max_new_tokens=8, do_sample=False, eos_token_id=None, use_cache=keeps)
            for keeps in (True, False)
        ]
    print(f"{types[0]} first: the cache of {PROMPT} tokens says {length}")
    assert torch.equal(*generated)
    if types[0] == FULL:
        assert length == PROMPT and not wrong, wrong
    else:
        assert length == 0 and wrong == [(1, False), (2, False), (2, True), (12, False), (12, True)], wrong
P
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/program.py" 2> "$work/errors" || { cat "$work/errors"; exit 1; }
