"""A tokenizer.json of the library ``tokenizers``, as Hugging Face's directories hold it, where it is byte-level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from muse_core.data.byte_pair import END, BytePairTokenizer, byte_characters, restore
from muse_core.data.sources import expanded, read_tokenizer_file
from muse_core.errors import DataError

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
ROUND_TRIP = "A ☃ cafe\u0301 ﬁ \u00a0\u3000\u200b two  spaces\n\tnaïve 日本語 🦊\r\n  ▁ 1234567 <|x|> I'm \x00 end "
"""Text that an encoding must give back byte for byte: what normalisers change is in it."""


def read(path: str, separator: str | None) -> BytePairTokenizer:
    """The encoding of ``path``, a tokenizer.json or a directory with one.

    Special tokens of the file (``special``) are reserved: text never gives one, so that text cannot end a document.
    ``separator`` names the one that stands before every document. Raises DataError for a file that is not one, and for
    an encoding that does not give text back byte for byte: bits per byte could not be computed from its tokens.
    """
    file = Path(expanded(path, "data.tokenizer.path"))
    file = file / FILE if file.is_dir() else file
    table = _table(file)
    model, decoder = table.get("model"), table.get("decoder")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise DataError(f"{file}: holds no byte-pair model with a vocabulary; give a tokenizer.json of byte-level BPE")
    if not isinstance(decoder, dict) or "ByteLevel" not in json.dumps(decoder):
        raise DataError(
            f"{file}: its decoder is {_kind(decoder)} and not ByteLevel, so that its tokens are no strings of bytes "
            "and bits per byte could not be computed; give a byte-level tokenizer, as those of GPT-2, Llama 3 or Qwen"
        )
    alphabet = set(byte_characters())
    added = [one for one in table.get("added_tokens") or [] if isinstance(one, dict)]
    special = {str(one["content"]): int(one["id"]) for one in added if one.get("special")}
    named = {str(one["content"]) for one in added}
    if odd := [token for token in model["vocab"] if token not in named and not alphabet.issuperset(token)]:
        raise DataError(f"{file}: token {odd[0]!r} is not made of bytes: not byte-level encoding")
    chosen = _separator(file, separator, special, model["vocab"], added)
    # Truncation and padding are for batches; the post-processor would put special tokens into every document.
    plain = table | {"truncation": None, "padding": None, "post_processor": None}
    try:
        found = restore(json.dumps(plain), chosen)
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"{file}: the library tokenizers cannot read it ({error})") from error
    # tokenizers 0.23 numbers added tokens on from the vocabulary, whatever number the file gives them.
    there = {token.content: index for index, token in found.model.get_added_tokens_decoder().items()}
    for one in added:
        if there.get(str(one["content"])) != one["id"]:
            raise DataError(
                f"{file}: the token {one['content']!r} has number {one['id']}, and the library tokenizers reads it as "
                f"{there.get(str(one['content']))}: number the added tokens on from the vocabulary, without gaps"
            )
    _check_round_trip(file, found)
    return found


def _table(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(read_tokenizer_file(str(file)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}): give a tokenizer.json") from error
    if not isinstance(table, dict):
        raise DataError(f"{file}: not a table: give a tokenizer.json")
    return table


def _separator(
    file: Path, wanted: str | None, special: dict[str, int], vocabulary: dict[str, int], added: list[dict[str, Any]]
) -> int:
    if wanted is None:
        config = file.with_name(CONFIG)
        named = _table(config).get("eos_token") if config.is_file() else None
        named = named.get("content") if isinstance(named, dict) else named
        wanted = named if isinstance(named, str) and named in special else END
        if wanted not in special:
            return max([*vocabulary.values(), *(int(one["id"]) for one in added)], default=-1) + 1
    if wanted not in special:
        known = ", ".join(map(repr, list(special)[:8])) or "none"
        raise DataError(f"{file}: data.tokenizer.separator {wanted!r} is no special token of it; there are {known}")
    return special[wanted]


def _check_round_trip(file: Path, tokenizer: BytePairTokenizer) -> None:
    back = tokenizer.decode_bytes(tokenizer.encode(ROUND_TRIP))
    if back != ROUND_TRIP.encode():
        at = next((i for i, (a, b) in enumerate(zip(back, ROUND_TRIP.encode())) if a != b), len(back))
        raise DataError(
            f"{file}: does not give text back byte for byte ({ROUND_TRIP.encode()[at - 8 : at + 8]!r} comes back as "
            f"{back[at - 8 : at + 8]!r}): its normaliser, or a prefix that it adds, changes text, so that bits per "
            "byte could not be computed"
        )


def _kind(decoder: Any) -> str:
    return str(decoder.get("type")) if isinstance(decoder, dict) else "missing"
