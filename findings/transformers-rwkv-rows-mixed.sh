#!/usr/bin/env bash
# transformers 5.23.0: RWKV goes on from its state by one token rightly for one row and wrongly for several. The token before
# is kept as (rows, width) and mixed with (rows, 1, width), which broadcasts to (rows, rows, width): each row is mixed with
# the last token of every row, one token comes back as as many logits as there are rows, and generate, which keeps a
# state by default, takes those that belong to the last row. So what is generated for a text depends on the other texts of
# the batch, from the second token on, without an error or a word. One row at a time is right, and so is use_cache=False.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0
cat > "$work/program.py" <<'P'
import torch
import transformers
from transformers import AutoModelForCausalLM, RwkvConfig

PROMPT, MORE, ROWS = 12, 16, 4
print("transformers", transformers.__version__)
torch.manual_seed(0)
config = RwkvConfig(vocab_size=64, hidden_size=32, attention_hidden_size=32, intermediate_size=48, num_hidden_layers=2)
model = AutoModelForCausalLM.from_config(config).eval()
for parameter in model.parameters():
    if parameter.ndim == 2:
        torch.nn.init.normal_(parameter, std=0.2)
ids = torch.randint(3, 64, (ROWS, PROMPT + 1))


def generated(rows, **options):
    return model.generate(rows, max_new_tokens=MORE, do_sample=False, eos_token_id=None, **options)[:, PROMPT:]


with torch.no_grad():
    for rows in (1, ROWS):
        whole = model(ids[:rows]).logits[:, -1]
        state = model(ids[:rows, :PROMPT], use_cache=True).state
        logits = model(ids[:rows, PROMPT:], state=state, use_cache=True).logits
        apart = (logits[:, -1] - whole).abs().max().item()
        print(f"{rows} rows, one token after {PROMPT}: logits {tuple(logits.shape)}, differ by {apart:.1e} where the"
              f" largest is {whole.abs().max():.1f}")
        assert logits.shape == (rows, rows, 64)
        assert apart < 1e-4 if rows == 1 else apart > 0.5

    prompts = ids[:, :PROMPT]
    alone = torch.cat([generated(prompts[row : row + 1]) for row in range(ROWS)])
    slow, together = generated(prompts, use_cache=False), generated(prompts)
    same = (together == alone).double()
    print(f"generate, {ROWS} rows together: {same[:, 0].mean():.0%} of the first tokens and {same[:, 1:].mean():.0%} of"
          f" the {MORE - 1} after it are those of each row alone; with use_cache=False"
          f" {(slow == alone).double().mean():.0%} of all")
    assert torch.equal(slow, alone) and same[:, 0].all() and same[:, 1:].mean() < 0.5
P
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/program.py" 2> "$work/errors" || { cat "$work/errors"; exit 1; }
