"""The layer against a dense sum over each document, the bounds it can take, and what a recipe is told."""

import pytest
import torch
from muse_trace_attention.layer import grouped

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.model.attention import rotate
from muse_core.testing import build_component

WIDTH, LENGTH = 16, 24
STARTS = ([0, 9], [5, 6, 17])


def build(signals=None, **options):
    layer = build_component("layer", "trace-attention", options, width=WIDTH, dtype="float64", signals=signals)
    return layer.double()


def sequence():
    x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resets = torch.zeros(2, LENGTH, dtype=torch.bool)
    positions = torch.zeros(2, LENGTH, dtype=torch.int64)
    for row, starts in enumerate(STARTS):
        resets[row, starts] = True
        for token in range(1, LENGTH):
            positions[row, token] = 0 if resets[row, token] else positions[row, token - 1] + 1
    return x, Tokens(positions, resets=resets)


def limit(layer, options, share, positions, row, head, first, t):
    """b_t² as the options define it; ``share`` (B, N, H) is V²/(Γ + η)² of the attention heads."""
    if options.get("bound") == "theory":
        return options["factor"] ** 2 * share[row, first : t + 1, head].sum()
    constant = options.get("bound", 0.5) if layer.dynamics is None else layer.dynamics()[head]
    n = int(positions[row, t]) + 1
    growth = {"none": 1.0, "harmonic": sum(1 / i for i in range(1, n + 1)), "linear": n}
    return constant**2 * growth[options.get("growth", "linear")]


def allowed(squares, bound, knee):
    """g(Q; b²)."""
    if squares <= knee * bound:
        return squares
    return bound - (1 - knee) ** 2 * bound**2 / (squares + (1 - 2 * knee) * bound)


def dense(layer, options, x, tokens, share=None):
    """The definition, one query at a time: outputs, and the largest norm over its bound."""
    knee, window = options.get("knee", 0.5), options.get("window", LENGTH)
    query, key, value = (part(x).unflatten(-1, (-1, layer.size)) for part in (layer.query, layer.key, layer.value))
    query, key = (rotate(part, tokens.positions, 10_000.0) for part in (query, key))
    mixed, filled = torch.zeros_like(query), 0.0
    for row in range(2):
        for head in range(layer.heads):
            squares = used = 0.0
            for t in range(LENGTH):
                if tokens.resets[row, t]:
                    squares = used = 0.0
                document = t - int(tokens.positions[row, t])
                first = max(document, t - window + 1)
                group = head * layer.groups // layer.heads
                scores = key[row, first : t + 1, group] @ query[row, t, head] / layer.size**0.5
                weights = scores.softmax(0)
                bound = limit(layer, options, share, tokens.positions, row, head, document, t)
                own = weights.square().sum()
                scale = ((allowed(squares + own, bound, knee) - allowed(squares, bound, knee)) / own).sqrt()
                squares, used = squares + own, used + scale**2 * own
                filled = max(filled, float((used / bound).sqrt()))
                mixed[row, t, head] = scale * weights @ value[row, first : t + 1, group]
    return layer.output(mixed.flatten(-2)), filled


@pytest.mark.parametrize(
    "options",
    (
        {"heads": 4},
        {"heads": 4, "key_value_heads": 2, "window": 5, "bound": 0.7, "growth": "harmonic", "knee": 0.2},
        {"heads": 2, "bound": 1.0, "growth": "none", "knee": 0.0},
        {"heads": 2, "bound": "theory", "factor": 0.4},
    ),
    ids=lambda options: str(options.get("bound", "learned")),
)
def test_equals_the_definition(options):
    signals = {"damped_potential": (6,)} if options.get("bound") == "theory" else None
    layer, (x, tokens) = build(signals, **options), sequence()
    ratio = torch.randn(2, LENGTH, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = ratio.square().unflatten(-1, (2, 3)).mean(-1)
    with torch.no_grad():
        step = layer(x, None, {"damped_potential": ratio} if signals else {}, tokens)
        expected, filled = dense(layer, options, x, tokens, share)
    torch.testing.assert_close(step.update, expected, rtol=1e-11, atol=1e-11)
    assert 0.3 < filled < 1.0 and step.metrics["filled_max"].item() == pytest.approx(filled)
    assert 0.1 < step.metrics["scaled"] <= 1.0 and 0.1 < step.metrics["scale"] < 1.0
    assert step.metrics["norm"] < step.metrics["bound"] and step.metrics["norm"] < step.metrics["plain_norm"]


def test_a_large_bound_is_plain_attention():
    x, tokens = sequence()
    layer = build(heads=2, bound=1e6)
    plain = build_component("layer", "attention", {"heads": 2}, width=WIDTH, dtype="float64").double()
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        step = layer(x, None, {}, tokens)
        torch.testing.assert_close(step.update, plain(x, None, {}, tokens).update, rtol=1e-12, atol=1e-12)
    assert step.metrics["scaled"] == 0.0


def test_metrics_go_on_where_the_last_call_ended():
    x, tokens = sequence()
    layer = build(heads=2, bound=0.6)
    with torch.no_grad():
        whole = layer(x, None, {}, tokens)
        first = layer(x[:, :8], None, {}, Tokens(tokens.positions[:, :8], resets=tokens.resets[:, :8]))
        rest = layer(x[:, 8:], first.state, {}, Tokens(tokens.positions[:, 8:], resets=tokens.resets[:, 8:]))
    for name in ("norm", "scaled", "plain_norm"):
        both = (8 * first.metrics[name] + 16 * rest.metrics[name]) / 24
        torch.testing.assert_close(both, whole.metrics[name])
    torch.testing.assert_close(rest.state["used"], whole.state["used"])


def test_heads_of_the_resolvent_in_groups():
    squares = torch.arange(6.0).expand(1, 1, 6)
    assert grouped(squares, 2).flatten().tolist() == [1.0, 4.0]
    assert grouped(squares, 4).flatten().tolist() == [2.5] * 4


def test_the_bound_of_the_theory_holds():
    """‖ |V|^½ (H − z)⁻¹ |V|^½ ‖₂ ≤ ‖V/(Γ + η)‖₂ for every prefix, H hopping and V on the diagonal, Γ of each site."""
    random = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 10.0):
        potential = scale * torch.randn(40, generator=random, dtype=torch.float64)
        broadening = 0.05 + torch.rand(40, generator=random, dtype=torch.float64)
        hopping = torch.diag(torch.ones(39, dtype=torch.float64), 1)
        for free in (True, False):
            diagonal = -1j * broadening - 0.3 + (0 if free else potential)
            matrix = torch.diag(diagonal) + hopping + hopping.T
            for n in (1, 7, 40):
                root = potential[:n].abs().sqrt()
                kernel = root[:, None] * torch.linalg.inv(matrix[:n, :n]) * root
                assert torch.linalg.norm(kernel) <= (potential / broadening)[:n].norm() * (1 + 1e-12)


@pytest.mark.parametrize(
    "options, sentence",
    (
        ({"bound": "nothing"}, "must be 'theory' or 'learned' or a number"),
        ({"bound": 0.0}, "a number above 0 and at most 1e6, got 0.0"),
        ({"heads": 3, "key_value_heads": 2}, "heads = 3 is not a multiple of key_value_heads = 2"),
        ({"knee": 1.0}, "knee"),
    ),
)
def test_bad_options(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        build(**options)


RECIPE = """
format = 2
name = "bound"
data = {{ use = "state-of-the-union" }}
[model]
width = 32
depth = 1
block = [{block}]
[train]
steps = 1
sequence_length = 32
"""
LAYER = '{ use = "trace-attention", heads = 4, bound = "theory" }'
RESOLVENT = '{ use = "resolvent", heads = 8 }'


def test_the_bound_of_the_theory_needs_a_resolvent(tmp_path):
    """Refused with the line, what is missing and what to do; nothing is written."""
    from click.testing import CliRunner

    from muse_core.cli.run import main

    for block, sentence in (
        (LAYER, 'no layer of this model provides - put a resolvent before it, or set bound = "learned" or a number'),
        (f"{LAYER}, {RESOLVENT}", "which resolvent provides only later; place it earlier"),
    ):
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE.format(block=block))
        result = CliRunner().invoke(main, [str(path), "--run-dir", str(tmp_path / "run")])
        assert result.exit_code == 2
        output = " ".join(result.output.split())
        assert "recipe.toml:8: model.block[0]: trace-attention" in output and sentence in output, output
        assert not (tmp_path / "run").exists()
