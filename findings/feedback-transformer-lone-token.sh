#!/usr/bin/env bash
# feedback-transformer-pytorch 0.0.11: FeedbackTransformer reads a row in segments of seq_len tokens (2 in README). In a
# segment of two or more a token attends to itself and to the memory; a segment of one, what is left at the end of a row
# of odd length, attends to the memory alone. So the scores of the last token of an odd row are those of another
# function, and change when any token is put behind it, though the model is causal: what is trained on even rows is
# asked, at every second token that it writes, for scores that no training gave it. Nothing is said; only a first token
# alone, which has no memory either, raises an error. With seq_len=1 all tokens are read alike.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 feedback-transformer-pytorch==0.0.11
cat > "$work/program.py" <<'P'
import torch
from feedback_transformer_pytorch import FeedbackTransformer

for seq_len in (1, 2, 4):
    torch.manual_seed(0)
    model = FeedbackTransformer(num_tokens=20, dim=32, depth=2, seq_len=seq_len, mem_len=64, dim_head=8, heads=2)
    model = model.double().eval()
    tokens = torch.randint(0, 20, (1, 24))
    with torch.no_grad():
        whole = model(tokens)
        shorter = [(model(tokens[:, :end]) - whole[:, :end])[0, -1].abs().max().item() for end in range(2, 25)]
    wrong = [end for end, off in enumerate(shorter, 2) if off > 1e-9]
    print(f"seq_len={seq_len}: the scores after token t are others where the row ends there, for t in {wrong};"
          f" by {max(shorter):.1e} of {whole.abs().max():.2f}")
    assert wrong == ([] if seq_len == 1 else list(range(1 + seq_len, 25, seq_len)))
P
"$work/venv/bin/python" "$work/program.py"
