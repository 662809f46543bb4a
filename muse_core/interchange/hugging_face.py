"""A run's model as a directory that Hugging Face transformers opens: weights, config, tokenizer and the code for both.

Written from the public behaviour of transformers 5; transformers itself is not needed to export.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from muse_core import __version__
from muse_core.building import build_model, kernel_backends
from muse_core.data.byte_pair import END, BytePairTokenizer, byte_characters
from muse_core.data.tokenizer import Tokenizer
from muse_core.data.tokenizers import ByteTokenizer
from muse_core.errors import RecipeError
from muse_core.interchange.target import require_free, require_text
from muse_core.interchange.weights import PREFIX
from muse_core.model.kernels import BoundKernels
from muse_core.recipe import Checked, check_table, to_toml
from muse_core.recipe.lock import used_distributions
from muse_core.recipe.reading import parse
from muse_core.recipe.resolved import as_table
from muse_core.storage.new_directory import filled
from muse_core.training.setup import Setup
from muse_core.training.trained import open_trained

CODE = "modeling_muse.py"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def export(run: Path, target: Path, *, dtype: str | None, step: int | None, say: Callable[[str], None]) -> list[str]:
    """Write the model of ``run`` into the new directory ``target``; returns the names of the files.

    ``dtype``: what the opened model computes its products in, ``"fp32"`` or ``"bf16"``; None is as the run computed.
    Weights are stored in fp32 for either, since the dynamics of layers are computed in it. Raises StorageError when
    ``target`` holds something or cannot be written, RecipeError or StorageError for a run that cannot be opened.
    """
    require_free(target)
    setup, at = open_trained(run, device="cpu", step=step, untrained=False, say=say)
    require_text(setup, run)
    name = DTYPES[dtype] if dtype is not None else setup.precision.dtype
    config = config_of(setup, name, at)
    tokenizer, separator = library_tokenizer(setup.corpus.tokenizer)
    with filled(target, "write the export") as partial:
        _write_weights(setup.model, partial / "model.safetensors")
        files = {
            "config.json": config,
            "generation_config.json": {"eos_token_id": config["eos_token_id"],
                                       "pad_token_id": config["pad_token_id"], "use_cache": True},
            "tokenizer.json": json.loads(tokenizer.to_str()),
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": separator, "pad_token": separator, "padding_side": "left",
                "clean_up_tokenization_spaces": False,
                "model_input_names": ["input_ids", "attention_mask"],
            },
        }
        for file, content in files.items():
            (partial / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        shutil.copyfile(Path(__file__).with_name(CODE), partial / CODE)
    return sorted(path.name for path in target.iterdir())


def _write_weights(model: nn.Module, path: Path) -> None:
    """Raises OSError where they cannot be written. A conjugate or negative that torch has as a mark alone is computed,
    since save_file writes what lies in memory (findings/safetensors-conjugate-lost.sh)."""
    weights = {
        PREFIX + key: value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        for key, value in model.state_dict().items()
    }
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:  # it has the system's error as text alone
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(0o644)  # it is written for its owner alone


def config_of(setup: Setup, dtype: str, step: int) -> dict[str, Any]:
    """The content of config.json."""
    checked = check_table(model_recipe(setup), setup.registry, "the run's recipe")
    separator = setup.corpus.tokenizer.separator
    options = setup.recipe.model.options
    return {
        "model_type": "muse",
        "architectures": ["MuseForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_muse.MuseConfig",
            "AutoModelForCausalLM": "modeling_muse.MuseForCausalLM",
        },
        "recipe": to_toml(checked.resolved),
        "requires": requirements(checked),
        "vocab_size": setup.corpus.vocabulary_size,
        "hidden_size": setup.model.embed(torch.zeros(1, 1, dtype=torch.long)).shape[-1],
        "num_hidden_layers": getattr(options, "depth", 1),
        "sequence_length": setup.recipe.train.sequence_length,
        "stream_period": setup.stream_period,
        "tie_word_embeddings": False,  # a tied head reads the embedding itself, there is no second tensor
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": separator,
        "pad_token_id": separator,
        "trained_steps": step,
        # Without it the dtype is that of the file's first tensor.
        "dtype": dtype,
    }


def model_recipe(setup: Setup) -> dict[str, Any]:
    """The part of a run's resolved recipe that decides its model: nothing of its text, its monitors or its folders."""
    recipe = setup.recipe
    resolved = as_table(recipe, setup.registry)
    kept = {key: resolved[key] for key in ("format", "name", "seed", "model") if key in resolved}
    return kept | {
        "train": {"sequence_length": recipe.train.sequence_length},
        "kernels": {"chunk": recipe.kernels.chunk},
    }


def requirements(checked: Checked) -> dict[str, str]:
    """Distributions that the model needs, with their versions here."""
    versions = {loaded.plugin.distribution: loaded.plugin.version for loaded in checked.registry.plugins}
    return {"muse-core": __version__} | {name: versions[name] for name in sorted(used_distributions(checked))}


def library_tokenizer(tokenizer: Tokenizer) -> tuple[Any, str]:
    """As a tokenizer of the library ``tokenizers``, with the separator as a special token, and that token's name.

    Raises RecipeError for one that the library does not have.
    """
    import tokenizers
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    if type(tokenizer) is ByteTokenizer:
        names = byte_characters()
        found = tokenizers.Tokenizer(models.BPE({name: value for value, name in enumerate(names)}, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        found.decoder = decoders.ByteLevel()
    elif type(tokenizer) is BytePairTokenizer:
        found = tokenizers.Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_json())["model"]))
    else:
        kind = json.loads(tokenizer.to_json()).get("kind")
        raise RecipeError(f"its tokenizer, {kind!r}, is neither of bytes nor of byte pairs, which transformers could "
                          "read, so that it cannot be exported; muse_core.load opens the run in Python")
    separator = found.id_to_token(tokenizer.separator) or END
    if tokenizer.separator not in found.get_added_tokens_decoder():
        found.add_special_tokens([AddedToken(separator, special=True, normalized=False)])
    if found.token_to_id(separator) != tokenizer.separator:
        raise RecipeError(f"its tokenizer has a token {separator!r} besides the separator, token "
                          f"{tokenizer.separator}, so that transformers could not tell them apart")
    return found, separator


def model_of(recipe: str, vocabulary_size: int, dtype: Any) -> nn.Module:
    """The model of an exported recipe (TOML), on the CPU, before its weights are loaded.

    Raises RecipeError and PluginError, as a run of the recipe would.
    """
    checked = check_table(parse(recipe, "config.json").table, None, "the recipe in config.json")
    name = str(dtype).removeprefix("torch.")
    kernels = BoundKernels(
        kernel_backends(checked.recipe, checked.registry),
        device="cpu",
        dtype="bfloat16" if name == "bfloat16" else "float32",
        chunk=checked.recipe.kernels.chunk,
    )
    model, _ = build_model(checked.recipe, checked.registry, vocabulary_size=vocabulary_size, kernels=kernels)
    return model.eval()
