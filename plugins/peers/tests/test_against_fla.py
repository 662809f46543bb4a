"""Each peer against fla-core's layer with equal weights, its kernels replaced by fla-core's own naive references, which
run on a CPU: output and gradients of the input and of every shared weight. Skipped where fla-core is not installed."""

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
1e-6 to a square that ours does not; measured with fla-core 0.6.0: 3.3e-5 of the output and 5.9e-5 of a gradient (Gated
DeltaNet), 2e-5 for KDA, below 2e-6 for the others."""


def inputs():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, LENGTH, WIDTH, generator=generator).requires_grad_()
    return x, Tokens(torch.arange(LENGTH).expand(2, -1))


def convolved(x, weight):
    padded = F.pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight, groups=x.shape[-1])).transpose(1, 2)


def unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


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


def check(ours, reference, pairs):
    """``pairs``: (our parameter, fla's)."""
    x, tokens = inputs()
    cotangent = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(4))
    found, expected = ours(x, None, {}, tokens).update, reference(x)
    mine = torch.autograd.grad((found * cotangent).sum(), [x, *(pair[0] for pair in pairs)])
    theirs = torch.autograd.grad((expected * cotangent).sum(), [x, *(pair[1] for pair in pairs)])
    differences = [((found - expected).abs().max() / expected.abs().max()).item()]
    for one, other in zip(mine, theirs):
        differences.append(((one.reshape(other.shape) - other).abs().max() / other.abs().max()).item())
    print("output", differences[0], "gradients", max(differences[1:]))
    assert max(differences) < CLOSE, f"output, input and weights differ by {differences}"


def taps_of(convolution, *theirs):
    """Copies fla's convolutions (C, 1, S), whose last tap is the present token, into our vectors a lag."""
    weight = torch.cat([one.weight for one in theirs])[:, 0]
    with torch.no_grad():
        for lag, tap in enumerate(convolution.taps):
            tap.copy_(weight[:, -1 - lag])


def copied(pairs):
    with torch.no_grad():
        for one, other in pairs:
            one.copy_(other.reshape(one.shape))
    return pairs


def test_gated_deltanet():
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    theirs = layers.GatedDeltaNet(hidden_size=WIDTH, head_dim=6, num_heads=4, expand_v=2)
    ours = build_component("memory layer", "gated-deltanet", {"heads": 4, "key_size": 6}, width=WIDTH)
    randomise(theirs)
    taps_of(ours.convolution, theirs.q_conv1d, theirs.k_conv1d, theirs.v_conv1d)
    pairs = copied(
        [
            (ours.query.weight, theirs.q_proj.weight),
            (ours.key.weight, theirs.k_proj.weight),
            (ours.value.weight, theirs.v_proj.weight),
            (ours.dynamics.decay.weight, theirs.a_proj.weight),
            (ours.dynamics.rate.weight, theirs.b_proj.weight),
            (ours.dynamics.log_amplitude, theirs.A_log),
            (ours.dynamics.bias, theirs.dt_bias),
            (ours.gate.weight, theirs.g_proj.weight),
            (ours.norm.weight, theirs.o_norm.weight),
            (ours.output.weight, theirs.o_proj.weight),
        ]
    )

    def reference(x):
        q, k = (
            unit(by_head(convolved(p(x), c.weight), 6))
            for p, c in ((theirs.q_proj, theirs.q_conv1d), (theirs.k_proj, theirs.k_conv1d))
        )
        v = by_head(convolved(theirs.v_proj(x), theirs.v_conv1d.weight), 12)
        g = -theirs.A_log.exp() * F.softplus(theirs.a_proj(x) + theirs.dt_bias)
        o, _ = naive_recurrent_gated_delta_rule(q, k, v, theirs.b_proj(x).sigmoid(), g)
        return theirs.o_proj((normed(o, theirs.o_norm) * F.silu(by_head(theirs.g_proj(x), 12))).flatten(2))

    check(ours, reference, pairs)


def test_kda():
    from fla.ops.kda.naive import naive_recurrent_kda

    theirs = layers.KimiDeltaAttention(hidden_size=WIDTH, head_dim=8, num_heads=4)
    ours = build_component("memory layer", "kda", {"heads": 4}, width=WIDTH)
    randomise(theirs)
    taps_of(ours.convolution, theirs.q_conv1d, theirs.k_conv1d, theirs.v_conv1d)
    pairs = copied(
        [
            (ours.query.weight, theirs.q_proj.weight),
            (ours.key.weight, theirs.k_proj.weight),
            (ours.value.weight, theirs.v_proj.weight),
            (ours.dynamics.decay.down.weight, theirs.f_proj[0].weight),
            (ours.dynamics.decay.up.weight, theirs.f_proj[1].weight),
            (ours.dynamics.rate.weight, theirs.b_proj.weight),
            (ours.dynamics.log_amplitude, theirs.A_log),
            (ours.dynamics.bias, theirs.dt_bias),
            (ours.gate.down.weight, theirs.g_proj[0].weight),
            (ours.gate.up.weight, theirs.g_proj[1].weight),
            (ours.gate.bias, theirs.g_proj[1].bias),
            (ours.norm.weight, theirs.o_norm.weight),
            (ours.output.weight, theirs.o_proj.weight),
        ]
    )

    def reference(x):
        q, k = (
            unit(by_head(convolved(p(x), c.weight), 8))
            for p, c in ((theirs.q_proj, theirs.q_conv1d), (theirs.k_proj, theirs.k_conv1d))
        )
        v = by_head(convolved(theirs.v_proj(x), theirs.v_conv1d.weight), 8)
        g = -theirs.A_log.exp()[:, None] * F.softplus(by_head(theirs.f_proj(x) + theirs.dt_bias, 8))
        o, _ = naive_recurrent_kda(q, k, v, g, theirs.b_proj(x).sigmoid())
        return theirs.o_proj((normed(o, theirs.o_norm) * by_head(theirs.g_proj(x), 8).sigmoid()).flatten(2))

    check(ours, reference, pairs)


def test_gla():
    from fla.ops.gla.naive import naive_recurrent_gla

    theirs = layers.GatedLinearAttention(hidden_size=WIDTH, num_heads=4)
    ours = build_component("memory layer", "gla", {"heads": 4}, width=WIDTH)
    randomise(theirs)
    pairs = copied(
        [
            (ours.query.weight, theirs.q_proj.weight),
            (ours.key.weight, theirs.k_proj.weight),
            (ours.value.weight, theirs.v_proj.weight),
            (ours.gate.weight, theirs.g_proj.weight),
            (ours.dynamics.decay.down.weight, theirs.gk_proj[0].weight),
            (ours.dynamics.decay.up.weight, theirs.gk_proj[1].weight),
            (ours.dynamics.decay.bias, theirs.gk_proj[1].bias),
            (ours.norm.weight, theirs.g_norm_swish_gate.weight),
            (ours.output.weight, theirs.o_proj.weight),
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
    taps_of(ours.convolution, theirs.conv1d)
    pairs = copied(
        [
            (ours.convolution.bias, theirs.conv1d.bias),
            (ours.dynamics.log_amplitude, theirs.A_log),
            (ours.dynamics.bias, theirs.dt_bias),
            (ours.skip, theirs.D),
            (ours.norm.weight, theirs.norm.weight),
            (ours.output.weight, theirs.out_proj.weight),
        ]
    )

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

    check(ours, reference, pairs)


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
    pairs = copied(
        [
            (ours.dynamics.bias, theirs.dt_bias),
            (ours.key_bias, theirs.B_bias),
            (ours.query_bias, theirs.C_bias),
            (ours.key_norm.weight, theirs.B_norm.weight),
            (ours.query_norm.weight, theirs.C_norm.weight),
            (ours.skip, theirs.D),
            (ours.output.weight, theirs.out_proj.weight),
        ]
    )

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

    check(ours, reference, pairs)


def test_rwkv7():
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    with pytest.warns(UserWarning, match="potentially buggy"):
        theirs = layers.RWKV7Attention(hidden_size=WIDTH, head_dim=8, layer_idx=0, num_hidden_layers=2)
    ours = build_component("memory layer", "rwkv7", {"heads": 4}, width=WIDTH)
    randomise(theirs)
    names = {"read": "x_r", "decay": "x_w", "key": "x_k", "value": "x_v", "rate": "x_a", "gate": "x_g"}
    pairs = [(ours.shift[name], getattr(theirs, other)) for name, other in names.items()]
    for mine, lora in ((ours.decay, theirs.w_lora), (ours.rate, theirs.a_lora), (ours.gate, theirs.g_lora)):
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
    copied(pairs)

    def reference(x):
        delta = F.pad(x, (0, 0, 1, -1)) - x
        xr, xw, xk, xv, xa, xg = (x + delta * getattr(theirs, f"x_{letter}").view(-1) for letter in "rwkvag")
        w = -0.6065306597126334 * theirs.w_lora(xw).sigmoid()
        r, k, v = theirs.r_proj(xr), theirs.k_proj(xk), theirs.v_proj(xv)
        a, g = theirs.a_lora(xa).sigmoid(), theirs.g_lora(xg)
        kk = F.normalize(by_head(k * theirs.k_k, 8), dim=-1)
        k = k.addcmul(k * (a - 1), theirs.k_a)
        r, w, k, a, v = (by_head(part, 8) for part in (r, w, k, a, v))
        q, w, kt, vt, alpha, beta = (part.transpose(1, 2) for part in (r * 8**0.5, w, k, v, -kk, kk * a))
        o, _ = dplr_recurrence(q, kt, vt, alpha, beta, w)
        o = theirs.g_norm(o.transpose(1, 2).flatten(2).flatten(0, 1)).view(2, LENGTH, WIDTH)
        o = o + ((r * k * theirs.r_k).sum(-1, keepdim=True) * v).flatten(2)
        return theirs.o_proj(o * g)

    check(ours, reference, pairs)
