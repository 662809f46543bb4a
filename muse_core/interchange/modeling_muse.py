"""A model trained by MUSE for Hugging Face transformers. Needs muse-core and the plugins that config.json lists.

The carried state of the layers travels as ``past_key_values``, a :class:`MuseCache`. Padding may stand on the left (as
``generate`` wants it) or on the right of a row; a padded row computes what it would compute alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

LONGEST_PIECE = 512
"""Tokens that the model reads at once when it carries state: bounds the memory of a long prompt."""


class MuseConfig(PretrainedConfig):
    """``recipe``: the run's resolved recipe as TOML. ``requires``: distributions that wrote the weights."""

    model_type = "muse"

    def __init__(
        self,
        recipe: str = "",
        requires: Mapping[str, str] | None = None,
        vocab_size: int = 0,
        hidden_size: int = 0,
        num_hidden_layers: int = 1,
        sequence_length: int = 0,
        stream_period: int = 1,
        use_cache: bool = True,
        **more: Any,
    ):
        self.recipe = recipe
        self.requires = dict(requires or {})
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.sequence_length = sequence_length
        self.stream_period = stream_period
        self.use_cache = use_cache
        super().__init__(**more)


class MuseCache:
    """The state of every layer after ``seen`` columns, and how many tokens each row has had."""

    is_compileable = False

    def __init__(self, state: Any = None, seen: int = 0, lengths: Tensor | None = None):
        self.state, self.seen, self.lengths = state, seen, lengths

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i takes over from row ``beam_idx[i]``."""
        self.state = _rows(self.state, beam_idx)
        if self.lengths is not None:
            self.lengths = self.lengths.index_select(0, beam_idx.to(self.lengths.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.lengths is not None:
            self.reorder_cache(torch.arange(len(self.lengths)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def crop(self, max_length: int) -> None:
        raise ValueError("the state of a MUSE model cannot be cut back; use generation that takes no tokens back")


class MuseForCausalLM(PreTrainedModel, GenerationMixin):
    """The recipe's model under ``self.model``. Parameters are fp32; a config of dtype bfloat16 computes under autocast,
    as the run did."""

    config_class = MuseConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _no_split_modules: list[str] = []
    _is_stateful = True
    _supports_cache_class = True

    def __init__(self, config: MuseConfig):
        super().__init__(config)
        with torch.device("cpu"):
            self.model = _built(config)
        # Layers compute dynamics in fp32 whatever the products' precision is, so that parameters stay as they are.
        self._keep_in_fp32_modules_strict = {"model"}
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: Any) -> None:
        """The recipe's initializers have run."""

    def get_input_embeddings(self) -> Any:
        return getattr(self.model, "embedding", None)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, N) → logits (B, N or ``logits_to_keep``, V). ``labels`` (B, N), −100 where none: the mean
        cross-entropy of the next label, as transformers defines it. ``use_cache`` defaults to the config's."""
        use_cache = self.config.use_cache if use_cache is None else use_cache
        before = past_key_values if isinstance(past_key_values, MuseCache) else MuseCache()
        if before.seen == 0 and past_key_values is not None and _length(past_key_values):
            raise ValueError("past_key_values is of another model; MUSE models carry a MuseCache")
        after = MuseCache(before.state, before.seen, before.lengths)
        hidden = []
        for start in range(0, input_ids.shape[1], LONGEST_PIECE) if use_cache else (0,):
            stop = start + LONGEST_PIECE if use_cache else input_ids.shape[1]
            hidden.append(self._read(input_ids[:, start:stop], attention_mask, after))
        found = torch.cat(hidden, 1)
        kept = found if isinstance(logits_to_keep, int) and logits_to_keep == 0 else (
            found[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else found[:, logits_to_keep]
        )
        with self._precision():
            logits = self.model.logits(kept)
        logits = logits.float()
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device), ignore_index=-100
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=after if use_cache else None)

    def _read(self, ids: Tensor, mask: Tensor | None, cache: MuseCache) -> Tensor:
        """Hidden values of the next columns; moves the cache on."""
        from muse_core.contracts import Tokens

        rows, columns = ids.shape
        lengths = torch.zeros(rows, dtype=torch.long, device=ids.device) if cache.lengths is None else cache.lengths
        if mask is None:
            real = torch.ones(rows, columns, dtype=torch.bool, device=ids.device)
        elif mask.ndim == 2 and mask.shape[1] >= columns:
            start = cache.seen if mask.shape[1] >= cache.seen + columns else mask.shape[1] - columns
            real = mask[:, start : start + columns].to(torch.bool)
        else:
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)} where (batch, columns so far) is due")
        counted = lengths[:, None] + real.cumsum(1)
        resets = valid = None
        if not bool(real.all()):
            # A document starts at a row's first token: what stood before, padding on the left, does not reach it.
            resets = real & (counted == 1)
            valid = real | (counted == 0)
            valid = None if bool(valid.all()) else valid
        positions = (counted - 1).clamp_min(0)
        with self._precision():
            output = self.model(
                ids, cache.state, Tokens(positions, cache.seen % self.config.stream_period, resets, valid)
            )
        cache.state, cache.seen, cache.lengths = output.state, cache.seen + columns, counted[:, -1]
        return output.hidden

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.dtype in (torch.bfloat16, "bfloat16"):
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def _built(config: MuseConfig) -> torch.nn.Module:
    try:
        from muse_core.interchange.hugging_face import model_of
    except ImportError as error:
        raise ImportError(f"this model needs muse-core: pip install {_line(config)}") from error
    missing = []
    for name in config.requires:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise ImportError(f"this model needs {', '.join(missing)}: pip install {_line(config)}")
    return model_of(config.recipe, config.vocab_size, config.dtype)


def _line(config: MuseConfig) -> str:
    return " ".join(f"{name}=={version}" for name, version in config.requires.items())


def _length(cache: Any) -> int:
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 1


def _rows(state: Any, index: Tensor) -> Any:
    if isinstance(state, dict):
        return {key: _rows(value, index) for key, value in state.items()}
    return state.index_select(0, index.to(state.device)) if isinstance(state, Tensor) else state
