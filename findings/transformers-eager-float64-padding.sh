#!/usr/bin/env bash
# transformers 5.23.0: a model in float64 with the attention called eager makes NaN of every real token of a row that is
# padded on the left, as rows are for generate. What masks a token is the lowest float64, and the softmax is taken in
# float32, where that is minus infinity: a place of padding, which may see nothing, has NaN, its key and value in the
# next layer are NaN, and no mask takes that away. Greedy generate then gives token 0 all the way, without an error or a
# word. Eager is the default of some models (Gemma 2, Bloom). float32, sdpa, padding on the right and
# GPT-2, whose softmax is in the precision of the model, are right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0
cat > "$work/program.py" <<'P'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=48, head_dim=8, bos_token_id=None, eos_token_id=None, pad_token_id=0)
KINDS = {
    "llama": SIZES,
    "qwen3": SIZES,
    "gemma2": SIZES,
    "bloom": dict(vocab_size=60, hidden_size=32, n_layer=2, n_head=4, eos_token_id=None, pad_token_id=0),
    "gpt2": dict(vocab_size=60, n_embd=32, n_layer=2, n_head=4, eos_token_id=None, pad_token_id=0),
}
LENGTH, PADDING = 12, 4
ids = torch.randint(1, 60, (1, LENGTH), generator=torch.Generator().manual_seed(1))
padding = torch.zeros(1, PADDING, dtype=torch.long)
rows = {"left": torch.cat((padding, ids), 1), "right": torch.cat((ids, padding), 1)}


def build(kind, attention, dtype):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind]), attn_implementation=attention)
    return model.to(dtype).eval()


for kind in KINDS:
    default = build(kind, None, torch.float64).config._attn_implementation
    assert default == ("eager" if kind in ("gemma2", "bloom") else "sdpa")
    for attention in ("eager", "sdpa"):
        for dtype in (torch.float32, torch.float64):
            try:
                model = build(kind, attention, dtype)
            except ValueError as error:  # no sdpa for this kind
                assert attention == "sdpa" and default == "eager" and "does not support" in str(error)
                continue
            wrong = {}
            with torch.no_grad():
                alone = model(ids).logits
                for side, row in rows.items():
                    mask = (row != 0).long()
                    places = {} if kind == "bloom" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
                    scores = model(row, attention_mask=mask, **places).logits
                    real = scores[:, -LENGTH:] if side == "left" else scores[:, :LENGTH]
                    wrong[side] = int((~((real - alone).abs().amax(-1) < 1e-4)).sum())
                    assert wrong[side] == int(real.isnan().any(-1).sum())
                text, padded = (model.generate(row, attention_mask=(row != 0).long(), max_new_tokens=8, do_sample=False)
                                for row in (ids, rows["left"]))
            given = padded[0, -8:].tolist()
            print(f"{kind}, {attention}{' (default)' if attention == default else ''}, {str(dtype)[6:]}: NaN at"
                  f" {wrong['left']} of {LENGTH} real tokens with padding on the left, {wrong['right']} on the right;"
                  f" generated {given}")
            bad = attention == "eager" and dtype is torch.float64 and kind != "gpt2"
            assert wrong == {"left": LENGTH if bad else 0, "right": 0}
            assert given == [0] * 8 if bad else given == text[0, -8:].tolist()
P
"$work/venv/bin/python" "$work/program.py" 2> "$work/progress" || { cat "$work/progress"; exit 1; }
