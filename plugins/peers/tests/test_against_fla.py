"""Each peer against flash-linear-attention's layer with equal weights, its kernels replaced by fla-core's own naive
references, which run on a CPU: output and gradients of input and weights. Skipped where they are not installed."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.testing import build_component

pytest.importorskip("fla")
layers = pytest.importorskip("fla.layers")

WIDTH, LENGTH = 32, 23
CLOSE = 5e-4
"""Largest difference, as a share of the largest number. fla-core's references compute in float32 and its l2 norm adds
1e-6 to a square that ours does not, which is felt where queries and keys are short: with fla-core 0.6.0 and twelve
draws of first values at most 3.7e-5 of an output and 2.5e-4 of a gradient in the layers that normalise them, below 3e-6
in the others."""


@pytest.fixture(autouse=True)
def drawn_alike():
    """First values of fla's layers are drawn from torch's own generator."""
    torch.manual_seed(7)


def inputs():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, LENGTH, WIDTH, generator=generator).requires_grad_()
    return x, Tokens(torch.arange(LENGTH).expand(2, -1))


def convolved(x, weight):
    padded = F.pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight, groups=x.shape[-1])).transpose(1, 2)


def unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def share(found, expected):
    """Largest difference, as a share of the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def by_head(x, size):
    return x.unflatten(-1, (-1, size))


def normed(x, norm):
    return F.rms_norm(x, x.shape[-1:], norm.weight, 1e-5)


def randomise(layer):
    """First values that hide nothing: gains of one and matrices of zero are drawn anew."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith(("norm.weight", "bonus")) or parameter.abs().max() == 0:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


class Shared(NamedTuple):
    """Weights of ours that together are one of theirs, or several of theirs side by side."""

    ours: list
    theirs: list
    joined: Callable = torch.cat
    """What makes of gradients of ours those of theirs side by side."""


def taps_of(convolution, *theirs):
    """Copies fla's convolutions (C, 1, S), whose last tap is the present token, into our vectors a lag."""
    weight = torch.cat([one.weight for one in theirs])[:, 0]
    with torch.no_grad():
        for lag, tap in enumerate(convolution.taps):
            tap.copy_(weight[:, -1 - lag])
    return Shared([*convolution.taps], [one.weight for one in theirs], lambda taps: torch.stack(taps[::-1], -1))


def check(ours, reference, pairs, signals=None):
    """``pairs``: (our parameter, fla's), or ``Shared``; together they are all weights of our layer."""
    groups = [pair if isinstance(pair, Shared) else Shared([pair[0]], [pair[1]]) for pair in pairs]
    compared = {id(one) for group in groups for one in group.ours}
    forgotten = [name for name, one in ours.named_parameters() if id(one) not in compared]
    assert not forgotten, f"{forgotten} are compared with nothing"
    x, tokens = inputs()
    given = {name: value.requires_grad_() for name, value in (signals or {}).items()}
    cotangent = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(4))
    found, expected = ours(x, None, given, tokens).update, reference(x, *given.values())
    differences = {"output": share(found, expected)}
    leaves = {name: Shared([value], [value]) for name, value in {"x": x, **given}.items()}
    leaves |= {str(number): group for number, group in enumerate(groups)}
    for name, group in leaves.items():
        mine = torch.autograd.grad((found * cotangent).sum(), group.ours, retain_graph=True)
        theirs = torch.autograd.grad((expected * cotangent).sum(), group.theirs, retain_graph=True)
        theirs = torch.cat([one.flatten(1) if one.ndim == 3 else one for one in theirs])
        differences[name] = share(group.joined(mine).reshape(theirs.shape), theirs)
    assert max(differences.values()) < CLOSE, f"output and gradients of input and weights differ by {differences}"
    print("output", differences.pop("output"), "gradients", max(differences.values()))


def copied(pairs):
    with torch.no_grad():
        for one, other in pairs:
            one.copy_(other.reshape(one.shape))
    return pairs


def by_name(ours, theirs, names):
    return [(ours.get_parameter(one), theirs.get_parameter(other)) for one, other in names.items()]


def read_by(ours, theirs):
    """What makes queries, keys and values, and what makes the update."""
    names = {f"{name}.weight": f"{name[0]}_proj.weight" for name in ("query", "key", "value", "output")}
    return by_name(ours, theirs, names)


def opened_by(ours, theirs):
    """What KDA and Gated DeltaNet-2 have before the output."""
    gate = {"down.weight": "0.weight", "up.weight": "1.weight", "bias": "1.bias"}
    return [*by_name(ours.gate, theirs.g_proj, gate), (ours.norm.weight, theirs.o_norm.weight)]


def convolutions_of(theirs):
    return theirs.q_conv1d, theirs.k_conv1d, theirs.v_conv1d


def projected_by(theirs, x, key_width, value_width):
    """Queries and keys of length 1, and values, by head."""
    projections = theirs.q_proj, theirs.k_proj, theirs.v_proj
    parts = [convolved(p(x), c.weight) for p, c in zip(projections, convolutions_of(theirs), strict=True)]
    return (*(unit(by_head(part, key_width)) for part in parts[:2]), by_head(parts[2], value_width))


def test_gated_deltanet():
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    theirs = layers.GatedDeltaNet(hidden_size=WIDTH, head_dim=6, num_heads=4, expand_v=2)
    ours = build_component("memory layer", "gated-deltanet", {"heads": 4, "key_size": 6}, width=WIDTH)
    randomise(theirs)
    pairs = copied(
        [
            *read_by(ours, theirs),
            (ours.dynamics.decay.weight, theirs.a_proj.weight),
            (ours.dynamics.rate.weight, theirs.b_proj.weight),
            (ours.dynamics.log_amplitude, theirs.A_log),
            (ours.dynamics.bias, theirs.dt_bias),
            (ours.gate.weight, theirs.g_proj.weight),
            (ours.norm.weight, theirs.o_norm.weight),
        ]
    )

    def reference(x):
        q, k, v = projected_by(theirs, x, 6, 12)
        g = -theirs.A_log.exp() * F.softplus(theirs.a_proj(x) + theirs.dt_bias)
        o, _ = naive_recurrent_gated_delta_rule(q, k, v, theirs.b_proj(x).sigmoid(), g)
        return theirs.o_proj((normed(o, theirs.o_norm) * F.silu(by_head(theirs.g_proj(x), 12))).flatten(2))

    check(ours, reference, [taps_of(ours.convolution, *convolutions_of(theirs)), *pairs])


def test_kda():
    from fla.ops.kda.naive import naive_recurrent_kda

    theirs = layers.KimiDeltaAttention(hidden_size=WIDTH, head_dim=8, num_heads=4)
    ours = build_component("memory layer", "kda", {"heads": 4}, width=WIDTH)
    randomise(theirs)
    pairs = copied(
        [
            *read_by(ours, theirs),
            (ours.dynamics.decay.down.weight, theirs.f_proj[0].weight),
            (ours.dynamics.decay.up.weight, theirs.f_proj[1].weight),
            (ours.dynamics.rate.weight, theirs.b_proj.weight),
            (ours.dynamics.log_amplitude, theirs.A_log),
            (ours.dynamics.bias, theirs.dt_bias),
            *opened_by(ours, theirs),
        ]
    )

    def reference(x):
        q, k, v = projected_by(theirs, x, 8, 8)
        g = -theirs.A_log.exp()[:, None] * F.softplus(by_head(theirs.f_proj(x) + theirs.dt_bias, 8))
        o, _ = naive_recurrent_kda(q, k, v, g, theirs.b_proj(x).sigmoid())
        return theirs.o_proj((normed(o, theirs.o_norm) * by_head(theirs.g_proj(x), 8).sigmoid()).flatten(2))

    check(ours, reference, [taps_of(ours.convolution, *convolutions_of(theirs)), *pairs])


def test_gated_deltanet_2():
    """fla's layer is its authors' but for the gate before the output, where theirs has SiLU and fla's σ."""
    from fla.ops.gdn2.naive import naive_recurrent_gdn2

    theirs = layers.GatedDeltaNet2(hidden_size=WIDTH, head_dim=8, num_heads=4, expand_v=1.5)
    ours = build_component("memory layer", "gated-deltanet-2", {"heads": 4, "expand_value": 1.5}, width=WIDTH)
    randomise(theirs)
    pairs = copied(
        [
            *read_by(ours, theirs),
            (ours.decay.map.down.weight, theirs.f_proj[0].weight),
            (ours.decay.map.up.weight, theirs.f_proj[1].weight),
            (ours.decay.log_amplitude, theirs.A_log),
            (ours.decay.bias, theirs.dt_bias),
            (ours.erase.weight, theirs.b_proj.weight),
            (ours.write.weight, theirs.w_proj.weight),
            *opened_by(ours, theirs),
        ]
    )

    def reference(x):
        q, k, v = projected_by(theirs, x, 8, 12)
        g = -theirs.A_log.exp()[:, None] * F.softplus(by_head(theirs.f_proj(x) + theirs.dt_bias, 8))
        b, w = by_head(theirs.b_proj(x), 8).sigmoid(), by_head(theirs.w_proj(x), 12).sigmoid()
        o, _ = naive_recurrent_gdn2(q, k, v, g, b, w)
        return theirs.o_proj((normed(o, theirs.o_norm) * F.silu(by_head(theirs.g_proj(x), 12))).flatten(2))

    check(ours, reference, [taps_of(ours.convolution, *convolutions_of(theirs)), *pairs])


def test_gla():
    from fla.ops.gla.naive import naive_recurrent_gla

    theirs = layers.GatedLinearAttention(hidden_size=WIDTH, num_heads=4)
    ours = build_component("memory layer", "gla", {"heads": 4}, width=WIDTH)
    randomise(theirs)
    pairs = copied(
        [
            *read_by(ours, theirs),
            (ours.gate.weight, theirs.g_proj.weight),
            (ours.dynamics.decay.down.weight, theirs.gk_proj[0].weight),
            (ours.dynamics.decay.up.weight, theirs.gk_proj[1].weight),
            (ours.dynamics.decay.bias, theirs.gk_proj[1].bias),
            (ours.norm.weight, theirs.g_norm_swish_gate.weight),
        ]
    )

    def reference(x):
        q, k = by_head(theirs.q_proj(x), 4), by_head(theirs.k_proj(x), 4)
        g = F.logsigmoid(by_head(theirs.gk_proj(x), 4)) / 16
        o, _ = naive_recurrent_gla(q, k, by_head(theirs.v_proj(x), 8), g)
        gate = F.silu(by_head(theirs.g_proj(x), 8))
        return theirs.o_proj((normed(o, theirs.g_norm_swish_gate) * gate).flatten(2))

    check(ours, reference, pairs)


def test_mamba2():
    """Against the layer itself: it has a form in plain torch."""
    theirs = layers.Mamba2(hidden_size=WIDTH, head_dim=16, state_size=8, chunk_size=8)
    ours = build_component("memory layer", "mamba2", {"head_size": 16, "states": 8}, width=WIDTH)
    randomise(theirs)
    inner = 2 * WIDTH
    with torch.no_grad():
        # theirs: gate, x, B, C, Δ; ours: gate, x, B, C and Δ apart.
        ours.input.weight.copy_(theirs.in_proj.weight[: 2 * inner + 16])
        ours.dynamics.step.weight.copy_(theirs.in_proj.weight[2 * inner + 16 :])
    taps = taps_of(ours.convolution, theirs.conv1d)
    projected = Shared([ours.input.weight, ours.dynamics.step.weight], [theirs.in_proj.weight])
    names = {
        "convolution.bias": "conv1d.bias", "dynamics.log_amplitude": "A_log", "dynamics.bias": "dt_bias",
        "skip": "D", "norm.weight": "norm.weight", "output.weight": "out_proj.weight",
    }  # fmt: skip
    pairs = copied(by_name(ours, theirs, names))

    def reference(x):
        gate, mixed, step = theirs.in_proj(x).split((inner, inner + 16, theirs.num_heads), dim=-1)
        padded = F.pad(mixed.transpose(1, 2), (3, 0))
        mixed = F.silu(F.conv1d(padded, theirs.conv1d.weight, theirs.conv1d.bias, groups=inner + 16)).transpose(1, 2)
        value, key, query = mixed.split((inner, 8, 8), dim=-1)
        value, step = by_head(value, 16), F.softplus(step + theirs.dt_bias)
        weights, outputs = torch.zeros(2, theirs.num_heads, 8, 16), []
        for t in range(LENGTH):
            weights = (-theirs.A_log.exp() * step[:, t]).exp()[..., None, None] * weights
            weights = weights + torch.einsum("bh,bk,bhm->bhkm", step[:, t], key[:, t], value[:, t])
            outputs.append(torch.einsum("bk,bhkm->bhm", query[:, t], weights) + theirs.D[:, None] * value[:, t])
        read = torch.stack(outputs, 1).flatten(2) * F.silu(gate)
        return theirs.out_proj(normed(read, theirs.norm))

    check(ours, reference, [taps, projected, *pairs])


def test_mamba3():
    """Its kernels are not fla's own: on the weights of fla's layer, the recurrence of the authors written out."""
    theirs = layers.Mamba3(hidden_size=WIDTH, head_dim=16, state_size=8)
    ours = build_component("memory layer", "mamba3", {"head_size": 16, "states": 8}, width=WIDTH)
    randomise(theirs)
    inner, heads, generator = 2 * WIDTH, theirs.num_heads, torch.Generator().manual_seed(6)
    with torch.no_grad():
        theirs.B_norm.weight.add_(0.2 * torch.randn(8, generator=generator))
        theirs.C_norm.weight.add_(0.2 * torch.randn(8, generator=generator))
        # theirs: gate, x, B, C and what changes; ours: the latter apart.
        ours.input.weight.copy_(theirs.in_proj.weight[: 2 * inner + 16])
        ours.dynamics.projection.weight.copy_(theirs.in_proj.weight[2 * inner + 16 :])
    projected = Shared([ours.input.weight, ours.dynamics.projection.weight], [theirs.in_proj.weight])
    names = {
        "dynamics.bias": "dt_bias", "key_bias": "B_bias", "query_bias": "C_bias", "key_norm.weight": "B_norm.weight",
        "query_norm.weight": "C_norm.weight", "skip": "D", "output.weight": "out_proj.weight",
    }  # fmt: skip
    pairs = copied(by_name(ours, theirs, names))

    def turned(x, angle):
        """The first four of eight states, as two pairs."""
        matrix = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).unflatten(-1, (2, 2))
        pairs = torch.einsum("bhrij,bhrj->bhri", matrix, x[..., :4].unflatten(-1, (2, 2)))
        return torch.cat((pairs.flatten(-2), x[..., 4:]), -1)

    def reference(x):
        gate, value, key, query, step, decay, share, angle = theirs._project_and_split(x)
        key, query = normed(key, theirs.B_norm), normed(query, theirs.C_norm)
        value, step, share = by_head(value, 16), F.softplus(step + theirs.dt_bias), share.sigmoid()
        decay = (theirs._compute_a(decay) * step).exp()
        total, outputs = torch.zeros(2, heads, 2), []
        weights, last = torch.zeros(2, heads, 8, 16), torch.zeros(2, heads, 8, 16)
        for t in range(LENGTH):
            total = total + torch.pi * angle[:, t, None].tanh() * step[:, t, :, None]
            k = turned(key[:, t, None] + theirs.B_bias[:, 0], total)
            q = turned(query[:, t, None] + theirs.C_bias[:, 0], total)
            now = k[..., None] * value[:, t, :, None]
            weights = decay[:, t, :, None, None] * (weights + ((1 - share) * step)[:, t, :, None, None] * last)
            weights, last = weights + (share * step)[:, t, :, None, None] * now, now
            outputs.append(torch.einsum("bhk,bhkm->bhm", q, weights) + theirs.D[:, None] * value[:, t])
        return theirs.out_proj(torch.stack(outputs, 1).flatten(2) * F.silu(gate))

    check(ours, reference, [projected, *pairs])


def rwkv7_layers(index):
    """Ours and fla's, the first or the second of three, and their (parameter, parameter)."""
    with pytest.warns(UserWarning, match="potentially buggy"):
        theirs = layers.RWKV7Attention(hidden_size=WIDTH, head_dim=8, layer_idx=index, num_hidden_layers=3)
    signals = {"first_value": (WIDTH,)} if index else None
    ours = build_component("memory layer", "rwkv7", {"heads": 4}, width=WIDTH, depth=3, block=index, signals=signals)
    names = {"read": "x_r", "decay": "x_w", "key": "x_k", "value": "x_v", "rate": "x_a", "gate": "x_g"}
    pairs = [(ours.shift[name], getattr(theirs, other)) for name, other in names.items()]
    mixing = [(ours.decay, theirs.w_lora), (ours.rate, theirs.a_lora), (ours.gate, theirs.g_lora)]
    if index:
        mixing.append((ours.mix, theirs.v_lora))
        pairs.append((ours.mix.bias, theirs.v_lora.lora[2].bias))
    for mine, lora in mixing:
        pairs += [(mine.down.weight, lora.lora[0].weight), (mine.up.weight, lora.lora[2].weight)]
    pairs += [
        (ours.decay.bias, theirs.w_lora.lora[2].bias),
        (ours.rate.bias, theirs.a_lora.lora[2].bias),
        (ours.read.weight, theirs.r_proj.weight),
        (ours.key.weight, theirs.k_proj.weight),
        (ours.value.weight, theirs.v_proj.weight),
        (ours.removed, theirs.k_k),
        (ours.strengthened, theirs.k_a),
        (ours.bonus, theirs.r_k),
        (ours.norm.weight, theirs.g_norm.weight),
        (ours.norm.bias, theirs.g_norm.bias),
        (ours.output.weight, theirs.o_proj.weight),
    ]
    return ours, theirs, pairs


@pytest.mark.parametrize("index", [0, 1])
def test_rwkv7_starts_as_its_authors_start_it(index):
    """But for the output matrix: values by depth and channel, and the gains of what is drawn."""
    ours, theirs, pairs = rwkv7_layers(index)
    for one, other in pairs[:-1]:
        if one.ndim == 1 or one is ours.bonus:
            torch.testing.assert_close(one, other.reshape(one.shape), rtol=1e-5, atol=1e-6)
        else:  # orthogonal times a gain, or zero
            torch.testing.assert_close(*map(torch.linalg.svdvals, (one, other)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [0, 1])
def test_rwkv7(index):
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    ours, theirs, pairs = rwkv7_layers(index)
    randomise(theirs)
    copied(pairs)
    first = torch.randn(2, LENGTH, WIDTH)

    def reference(x, first=None):
        delta = F.pad(x, (0, 0, 1, -1)) - x
        xr, xw, xk, xv, xa, xg = (x + delta * getattr(theirs, f"x_{letter}").view(-1) for letter in "rwkvag")
        w = -0.6065306597126334 * theirs.w_lora(xw).sigmoid()
        r, k, v = theirs.r_proj(xr), theirs.k_proj(xk), theirs.v_proj(xv)
        if index:
            v = torch.lerp(v, first, theirs.v_lora(xv).sigmoid())
        a, g = theirs.a_lora(xa).sigmoid(), theirs.g_lora(xg)
        kk = F.normalize(by_head(k * theirs.k_k, 8), dim=-1)
        k = k.addcmul(k * (a - 1), theirs.k_a)
        r, w, k, a, v = (by_head(part, 8) for part in (r, w, k, a, v))
        q, w, kt, vt, alpha, beta = (part.transpose(1, 2) for part in (r * 8**0.5, w, k, v, -kk, kk * a))
        o, _ = dplr_recurrence(q, kt, vt, alpha, beta, w)
        o = theirs.g_norm(o.transpose(1, 2).flatten(2).flatten(0, 1)).view(2, LENGTH, WIDTH)
        o = o + ((r * k * theirs.r_k).sum(-1, keepdim=True) * v).flatten(2)
        return theirs.o_proj(o * g)

    check(ours, reference, pairs, {"first_value": first} if index else None)
