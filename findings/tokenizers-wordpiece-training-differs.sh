#!/usr/bin/env bash
# tokenizers 0.23.3: WordPieceTrainer learns from the same text with the same options another numbering of its tokens in
# every process, and often other tokens; so does BpeTrainer with a continuing_subword_prefix. There is no seed to set,
# nothing is said, and one thread changes nothing. BpeTrainer without a prefix learns the same each time. A program that
# trains its tokenizer anew and loads weights of an earlier run reads other embeddings.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tokenizers==0.23.3
cat > "$work/program.py" <<'P'
import json
import random
import subprocess
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

PREFIX = {"continuing_subword_prefix": "##"}
TRAINERS = {
    "WordPiece": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer, {}),
    "BPE, prefix ##": (models.BPE(**PREFIX), trainers.BpeTrainer, PREFIX),
    "BPE": (models.BPE(), trainers.BpeTrainer, {}),
}


def learn(name):
    """Prints the vocabulary and a sentence's tokens."""
    random.seed(0)
    words = ["".join(random.choices("abcdefghijklmnopqrst", k=random.randint(2, 7))) for _ in range(300)]
    text = [" ".join(random.choices(words, k=20)) for _ in range(200)]
    model, trainer, options = TRAINERS[name]
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(text, trainer(vocab_size=200, show_progress=False, **options))
    numbers = tokenizer.get_vocab()
    print(json.dumps([sorted(numbers), sorted(numbers.items()), tokenizer.encode(text[0]).tokens]))


if len(sys.argv) > 1:
    learn(sys.argv[1])
    raise SystemExit
for name in TRAINERS:
    command = [sys.executable, __file__, name]
    runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(6)]
    sets, numberings, splits = (len({json.dumps(run[part]) for run in runs}) for part in range(3))
    print(f"{name}: of 6 processes {sets} sets of tokens, {numberings} numberings, {splits} splits of a sentence")
    assert (sets, numberings, splits) == (1, 1, 1) if name == "BPE" else numberings > 1, name
P
TOKENIZERS_PARALLELISM=false RAYON_NUM_THREADS=1 "$work/venv/bin/python" "$work/program.py"
