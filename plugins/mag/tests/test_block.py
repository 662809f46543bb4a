"""The block against its formulas, the gate that others read, and what is refused."""

import pytest
import torch
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.recipe import read_recipe
from muse_core.testing import build_component
from muse_core.testing.sequences import make_tokens

WIDTH = 16
MEMORY = {"use": "qk-projection", "heads": 2, "shard": 6, "persistent": 2}


def build(**options):
    options = {"heads": 2, "window": 4, "memory": MEMORY} | options
    return build_component("layer", "mag", options, width=WIDTH, dtype="float64").double()


def normed(x):
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


@pytest.mark.parametrize("mixing", ["gate", "additive", "query-blend"])
@torch.no_grad()
def test_it_is_its_formula(mixing):
    torch.manual_seed(0)
    layer, x, tokens = build(mixing=mixing), torch.randn(2, 15, WIDTH).double(), make_tokens(2, 15, documents=True)
    if mixing == "query-blend":
        layer.gate.bias.copy_(torch.randn(2))
    step = layer(x, None, {}, tokens)
    memory = layer.memory(x, None, {}, tokens).update
    if mixing == "query-blend":
        gate = (x @ layer.gate.weight.T + layer.gate.bias).sigmoid()
        answer = normed(memory.unflatten(-1, (2, -1)))

        def blend(query):
            return (1 - gate[..., None]) * query + gate[..., None] * answer

        expected = normed(layer.attention(x, None, tokens, blend)[0].flatten(2))
    else:
        attended = normed(layer.attention(x, None, tokens)[0].flatten(2))
        gate = normed(memory).sigmoid()
        expected = attended * gate if mixing == "gate" else attended + normed(memory)
    assert torch.allclose(step.update, layer.output(expected), rtol=0, atol=1e-12)
    if mixing == "additive":
        assert not step.signals
    else:
        assert torch.allclose(step.signals["gate"], gate, rtol=0, atol=1e-12)
        assert step.metrics["gate_variance"].item() == pytest.approx(gate.var(unbiased=False).item(), rel=1e-9)
        assert step.metrics["gate_deviation"].item() == pytest.approx(gate.std(unbiased=False).item(), rel=1e-9)
    assert step.metrics["memory/rate"].item() > 0


@torch.no_grad()
def test_what_is_beyond_the_window_is_only_seen_through_the_memory():
    torch.manual_seed(0)
    layer = build(memory={"use": "fast-weights", "heads": 2, "convolution": 0})
    x = torch.randn(1, 12, WIDTH).double()
    other = x.clone()
    other[0, 0] += 1.0
    tokens = make_tokens(1, 12)
    gates = [layer(each, None, {}, tokens).signals["gate"][0, -1] for each in (x, other)]
    attended = [layer.attention(each, None, tokens)[0][0, -1] for each in (x, other)]
    assert (gates[0] - gates[1]).abs().max() > 1e-6 and torch.equal(*attended)


def test_polarisation_reads_its_gate_and_teaches_the_memory():
    torch.manual_seed(0)
    layer = build()
    loss = build_component("layer", "polarisation", {}, signals={"gate": (WIDTH,)}).double()
    x, tokens = torch.randn(1, 12, WIDTH).double(), Tokens(torch.arange(12)[None])
    step = layer(x, None, {}, tokens)
    found = loss(x, None, step.signals, tokens)
    assert found.metrics["weight"] == 10.0
    gradients = torch.autograd.grad(found.losses["polarisation"], [layer.memory.value.weight, layer.gate.bias])
    assert all(gradient.any() for gradient in gradients)


RECIPE = """\
format = 2
name = "tiny"

[model]
width = 16
depth = 1

[[model.block]]
use = "mag"
heads = 2
{mag}

[train]
sequence_length = {length}
"""


def refused(tmp_path, mag, *, length=256, more=""):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(mag=mag, length=length) + more)
    with pytest.raises(RecipeError) as caught:
        read_recipe(file)
    return str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("mag, words", [
    ("window = 256", "window is 256 but sequences have 256 tokens"),
    ('window = 64\nmemory = { use = "qk-projection", shard = 64 }',
     "the memory 'qk-projection' reaches 64 tokens back, not beyond the window of 64"),
    ('window = 64\nmemory = { use = "fast-weights", initial_decay = [0.05, 0.1] }',
     "the memory 'fast-weights' reaches 20 tokens back, not beyond the window of 64"),
    ('window = 64\nmemory = { use = "sliding-window", window = 32 }',
     "the memory 'sliding-window' reaches 32 tokens back, not beyond the window of 64"),
    ('window = 64\nmemory = { use = "qk-projection", output = "signal" }', "answers by its signal alone"),
    ('window = 64\nmemory = "earlier-memory"', "reads the signal 'memory'"),
    ('window = 64\nmemory = "feed-forward"', "memory = 'feed-forward' is no memory layer"),
    ('window = 64\nmemory = { use = "fast-weights", period = 96, filters = ["snr"] }',
     "the memory's period is 96, which kernels.chunk = 64 does not divide"),
])  # fmt: skip
def test_bad_input_is_told_with_its_line(tmp_path, mag, words):
    text = refused(tmp_path, mag)
    assert words in text and "recipe.toml:8: model.block[0]" in text


def test_a_shard_that_ends_inside_a_chunk_is_refused_with_its_line(tmp_path):
    text = refused(tmp_path, 'window = 64\nmemory = { use = "qk-projection", heads = 2, shard = 100 }')
    assert "recipe.toml:12: model.block[0].memory: shard is 100, no multiple of kernels.chunk = 64" in text


@pytest.mark.parametrize("options, words", [
    ("chunk = 64, levels = 1, shard = 128", "shard = 128 with levels = 1: a single level is reset at documents alone"),
    ("chunk = 64, global_chunk = 128", "global_chunk = 128 with levels = 1"),
    ("chunk = 64, levels = 2, shard = 64, global_chunk = 128", "shard = 64 is one chunk: the first level would be"),
    ("chunk = 48, levels = 2, shard = 96, global_chunk = 128", "chunk = 48 does not divide global_chunk = 128"),
    ("chunk = 64, levels = 2, shard = 100, global_chunk = 128", "shard = 100 is no multiple of chunk = 64"),
])  # fmt: skip
def test_a_level_that_cannot_keep_its_resets_is_refused_with_its_line(tmp_path, options, words):
    text = refused(tmp_path, f'window = 64\nmemory = {{ use = "atlas", heads = 2, {options} }}')
    assert words in text and "recipe.toml:12: model.block[0].memory" in text, text


def test_two_blocks_of_one_name_are_refused_with_their_line(tmp_path):
    text = refused(tmp_path, "window = 64", more='\n[[model.block]]\nuse = "mag"\nwindow = 64\nheads = 2\n')
    assert "a second layer named 'mag' in one block; tell them apart with name" in text and "recipe.toml:16:" in text


def test_a_sound_recipe_is_read(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(mag='window = 64\nmemory = { use = "gla" }', length=256))
    assert read_recipe(file).recipe.model.options.block[0].layer.options.memory.name == "gla"


SHARED = """
[[model.block]]
use = "qk-projection"
heads = 2
output = "signal"
at = "0"
"""


def test_a_memory_that_nothing_reads_is_refused_with_its_line(tmp_path):
    text = refused(tmp_path, "window = 64", more=SHARED)
    assert "qk-projection adds nothing to the stream, and no later layer reads what it publishes (memory)" in text
    assert "recipe.toml:16: model.block[1]" in text


def test_several_blocks_share_one_memory(tmp_path):
    """It is at the first depth alone, and the blocks of both depths answer by it."""
    from muse_core.building import build_model

    file = tmp_path / "recipe.toml"
    head, mag = RECIPE.format(mag='window = 64\nmemory = "earlier-memory"', length=256).split("[[model.block]]")
    file.write_text(head.replace("depth = 1", "depth = 2") + SHARED + "\n[[model.block]]" + mag)
    checked = read_recipe(file)
    model, _ = build_model(checked.recipe, checked.registry, vocabulary_size=17)
    model(torch.arange(12)[None]).hidden.square().sum().backward()
    shared = model.get_submodule("blocks.0.qk-projection").value.weight.grad
    assert shared.any() and not hasattr(model.blocks[1], "qk-projection")
    gate = model.get_submodule("blocks.1.mag.gate").bias.grad
    assert gate.any()


@pytest.mark.parametrize("memory", [
    {"use": "atlas", "heads": 2, "key_size": 4, "chunk": 4, "initial_decay": [0.01, 0.1]},
    {"use": "gated-deltanet", "heads": 2, "key_size": 4},
], ids=lambda memory: memory["use"])  # fmt: skip
@torch.no_grad()
def test_pieces_are_the_whole_with_other_memories(memory):
    torch.manual_seed(0)
    layer, x = build(memory=memory), torch.randn(2, 13, WIDTH).double()
    whole = layer(x, None, {}, make_tokens(2, 13)).update
    state, parts = None, []
    for start, stop in ((0, 5), (5, 6), (6, 13)):
        step = layer(x[:, start:stop], state, {}, Tokens(torch.arange(start, stop).expand(2, -1), offset=start % 4))
        state = step.state
        parts.append(step.update)
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)
