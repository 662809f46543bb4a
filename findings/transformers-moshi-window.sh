#!/usr/bin/env bash
# transformers 5.23.0: Moshi's sliding_window (3000 by default) bounds attention where keys are cached and nowhere else.
# The mask of a call over a whole text, which training and scoring use, lets every token see all before it; the cache
# that generate and use_cache=True make keeps the last tokens of the window only, since the configuration names one. A
# model that was trained and measured on rows longer than the window is generated from as another one: logits differ
# from the first token past the window on, and what generate gives at temperature 0 is not what is likeliest under the
# model's own scores. Nothing is said. A DynamicCache() that is made without the configuration keeps all, and agrees
# with the call over the whole. Mistral, with the same option, has the window in both.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0
cat > "$work/program.py" <<'P'
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, MoshiConfig, MoshiForCausalLM

WINDOW, LENGTH = 6, 24
SIZES = dict(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
             head_dim=8, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=0)


def build(kind, config):
    torch.manual_seed(0)
    model = kind(config).double().eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.2)
    return model


def by_token(model, ids, cache=None):
    scores = []
    for token in ids.split(1, dim=1):
        out = model(token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        scores.append(out.logits)
    return torch.cat(scores, 1)


def whole(model, ids):
    return model(ids, use_cache=False).logits


def reach(score, model, ids):
    """The last token that another first token changes."""
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % 60
    return int(((score(model, ids) - score(model, other)).abs().amax(-1)[0] > 1e-9).nonzero().max())


for kind, config, sizes in ((MistralForCausalLM, MistralConfig, {"intermediate_size": 48}),
                            (MoshiForCausalLM, MoshiConfig, {"ffn_dim": 64})):
    for window in (WINDOW, LENGTH + 40):
        model = build(kind, config(**SIZES, **sizes, sliding_window=window))
        ids = torch.randint(1, 60, (1, LENGTH), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            scores = whole(model, ids)
            apart = (scores - by_token(model, ids)).abs().amax(-1)[0]
            kept = (scores - by_token(model, ids, DynamicCache())).abs().max().item()
            start = ids[:, :4]
            text = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=40, do_sample=False)
            likeliest = int((whole(model, text)[:, 3:-1].argmax(-1) == text[:, 4:]).sum())
            seen = reach(whole, model, ids), reach(by_token, model, ids)
        first = (apart > 1e-9).nonzero().flatten()[:1].tolist()
        print(f"{kind.__name__}, window of {window}: the first token is seen up to token {seen[0]} in one call, up to"
              f" {seen[1]} token by token; logits differ by up to {apart.max():.1f} of {scores.abs().max():.1f}"
              f"{f' from token {first[0]} on' if first else ''}, with DynamicCache() by {kept:.0e};"
              f" {likeliest} of 40 generated tokens are the likeliest")
        assert kept < 1e-9
        if window == WINDOW and kind is MoshiForCausalLM:
            assert first == [WINDOW] and seen == (LENGTH - 1, WINDOW - 1) and likeliest < 40
        else:
            assert first == [] and seen[0] == seen[1] and likeliest == 40
            assert seen[0] == min(window, LENGTH) - 1
P
"$work/venv/bin/python" "$work/program.py" 2> "$work/progress" || { cat "$work/progress"; exit 1; }
