#!/usr/bin/env bash
# reformer-pytorch 1.4.4: ReformerLM(causal=True) in evaluation, with its hashes fixed by the seed, gives other scores for
# earlier tokens when the last token alone is another one. Attention is masked, but which earlier tokens a token may look at
# is decided by chunks of the whole row sorted by hash: a later token that falls into another bucket moves the borders of
# the chunks before it. Its loss is then no loss of a causal model, and a row continued token by token gives other scores
# than the same row read at once. With use_full_attn=True no earlier score changes. Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy reformer-pytorch==1.4.4
cat > "$work/program.py" <<'P'
import torch
from reformer_pytorch import ReformerLM


def earlier_scores_that_change(full: bool, rows: int = 8, tokens: int = 64) -> tuple[int, float, float]:
    torch.manual_seed(0)
    model = ReformerLM(
        num_tokens=20, dim=32, depth=2, max_seq_len=tokens, heads=2, bucket_size=8, causal=True, use_full_attn=full
    ).double().eval()
    text = torch.randint(0, 20, (rows, tokens))
    other = text.clone()
    other[:, -1] = (other[:, -1] + 1) % 20
    found = []
    for given in (text, text, other):
        torch.manual_seed(1)  # the same hashes
        with torch.no_grad():
            found.append(model(given))
    assert torch.equal(found[0], found[1])
    change = (found[0] - found[2])[:, :-1].abs().amax(-1)
    return int((change > 1e-9).sum()), float(change.max()), float(found[0].abs().max())


for full in (False, True):
    count, most, size = earlier_scores_that_change(full)
    print(f"use_full_attn={full}: another last token changes {count} of 504 earlier positions,"
          f" by at most {most:.1e} of {size:.2f}")
    assert (count == 0) if full else (count > 50 and most > 1e-3), (count, most)
P
"$work/venv/bin/python" "$work/program.py"
