"""The resolvent layer, its energies and hoppings, what it carries from call to call, and its measures.

Letters: B batch rows, N tokens, D width, H heads, M values of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from muse_core.component import named
from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_core.model.lattice import Lattice, Sites, applied, sites, total
from muse_core.model.precision import lowered
from muse_core.model.projections import each
from muse_core.model.states import last_valid, restored, stored
from muse_resolvent.options import ResolventOptions
from muse_resolvent.phase import increments, spectral_shift

OVERDAMPED = 10.0


class Channels(nn.Module):
    """a ⊙ Re y + b ⊙ Im y, a gain each for a channel."""

    def __init__(self, width: int, gain: float, generator: torch.Generator):
        super().__init__()
        self.real = nn.Parameter(torch.empty(width).normal_(std=gain, generator=generator))
        self.imaginary = nn.Parameter(torch.empty(width).normal_(std=gain, generator=generator))

    def forward(self, y: Tensor) -> Tensor:
        """Complex (B, N, H, M) → (B, N, H M)."""
        y = y.flatten(2)
        return self.real * y.real + self.imaginary * y.imag


class Resolvent(nn.Module):
    """Reads θ_i = 1/(a_i − z − |l|² θ_{i−1}) and y_i = θ_i (v_i − l y_{i−1}) with a = V − iΓ and v = W x, per head.

    The upper hopping is the conjugate of the lower and Γ ≥ 0, so Im θ > 0 and |θ| ≤ 1/η. A document starts where both
    hoppings vanish. State, real with a trailing axis of 2 for complex numbers: ``theta`` (B, H, 2); with values ``y``
    (B, H, M, 2); where the phase is read ``theta0`` (B, H, 2) and ``xi`` (B, H). Source: mathematics §1.
    """

    def __init__(self, options: ResolventOptions, context: Context):
        super().__init__()
        self.heads = options.heads
        self.values = options.value_width(context.width)
        self.phase = options.phase
        self.publish = context.publish
        self.reads_phase = options.phase != "none" or bool(self.publish & {"phase", "spectral_shift"})
        self.potentials = nn.ModuleDict()
        for name, use in named(options.potential).items():
            # Initial values come from names: a repeated potential must not start as a copy of the first.
            own = context.name if name == use.name else f"{context.name}.potentials.{name}"
            self.potentials[name] = context.build(use, name=own, heads=options.heads)
        self.dynamics = Lattice(
            options.heads,
            min_broadening=options.min_broadening,
            initial_broadening=options.initial_broadening,
            added=options.added_broadening,
        )
        width, applied = context.width, self.heads * self.values
        self.gate = self.norm = self.channels = None
        if self.values:
            self.apply_resolvent = context.kernels.bind("causal_resolvent_apply", sizes={"value": self.values})
        if options.output == "channels":
            if applied != width:
                raise ValueError(f"heads = {self.heads} does not divide the width {width}")
            self.channels = Channels(width, options.initial_gain, context.generator)
        elif self.values:
            self.value = nn.Linear(width, applied, bias=False)
            nn.init.normal_(self.value.weight, std=width**-0.5)
            self.gate = nn.Linear(width, applied, bias=False) if options.gate else None
            self.norm = nn.RMSNorm(2 * applied, eps=1e-6) if options.output_norm else None
            self.gated_norm = context.kernels.bind("gated_norm", sizes={"features": 2 * applied})
        if self.reads_phase or not self.values:
            self.green = context.kernels.bind("causal_resolvent_diagonal")
        if self.channels is not None:
            return
        features = 2 * applied + self.heads * {"none": 2, "increment": 3, "shift": 5}[options.phase]
        self.output = nn.Linear(features, width, bias=False)
        nn.init.normal_(self.output.weight, std=(2 * context.depth * features) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        low = lowered(x)
        terms = self.terms(low, signals, tokens)
        potential, decay = total(terms, low, self.heads)
        value, gate = self.projected(low)
        with torch.autocast(x.device.type, enabled=False):
            energy, hopping = self.dynamics()
            matrix = sites(potential, decay, energy, hopping, tokens.resets)
            theta, y, kept = self.solve(matrix, value, state, tokens.valid)
            broadening = decay + energy.imag
            found = {"theta": torch.view_as_real(theta), "decay": decay, "broadening": broadening}
            if "damped_potential" in self.publish:
                found["damped_potential"] = potential / broadening
            if "lyapunov" in self.publish:
                found["lyapunov"] = local_exponents(theta, hopping)
            if "gate" in self.publish:
                found["gate"] = gate.sigmoid()
            phases: dict[str, Tensor] = {}
            if self.reads_phase:
                phases, kept_phases = self.read_phase(theta, matrix, state, tokens)
                found |= phases
                kept |= kept_phases
            measured = metrics(potential, broadening, theta, hopping, tokens.valid) | strengths(terms, tokens.valid)
            mixed = self.channels(y) if self.channels is not None else self.features(y, gate, found["theta"], phases)
        update = mixed if self.channels is not None else self.output(mixed)
        return LayerOutput(update, kept, {name: found[name] for name in sorted(self.publish)}, {}, measured)

    def projected(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Values (B, N, H, M) and the gate's pre-activation (B, N, H M); None for what there is not."""
        if not self.values:
            return None, None
        if self.channels is not None:
            return x.unflatten(-1, (self.heads, self.values)), None
        if self.gate is None:
            return self.value(x).unflatten(-1, (self.heads, self.values)), None
        value, gate = each(x, (self.value, self.gate))
        return value.unflatten(-1, (self.heads, self.values)), gate

    def features(self, y: Tensor | None, gate: Tensor | None, theta: Tensor, phases: dict[str, Tensor]) -> Tensor:
        """What the output matrix reads, (B, N, F), in the precision of its product, which the gate has."""
        others = [theta, *self.phase_features(phases)] if self.reads_phase else [theta]
        dtype = theta.dtype if gate is None else gate.dtype  # y is of the precision of theta
        behind = [feature.to(dtype).flatten(2) for feature in others]
        behind = behind[0] if len(behind) == 1 else torch.cat(behind, dim=-1)
        return behind if y is None else self.read_values(y, gate, behind)

    def hamiltonian(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """``optional_contracts.HasHamiltonian``: V and Γ (B, N, H), and |l| (H,)."""
        potential, decay = self.diagonal(lowered(x), signals, tokens)
        return potential, decay, self.dynamics()[1]

    def diagonal(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
        """V and Γ, each (B, N, H): sums over the potentials."""
        return total(self.terms(x, signals, tokens), x, self.heads)

    def terms(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> dict[str, tuple[Tensor, Tensor]]:
        """V and Γ of each potential by name."""
        return {name: term(x, signals, tokens) for name, term in self.potentials.items()}

    def solve(
        self, matrix: Sites, value: Tensor | None, state: State, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """θ (B, N, H), y (B, N, H, M) or None, both complex, and the state; ``value`` (B, N, H, M)."""
        if value is None:
            before = None if state is None else restored(state["theta"])
            theta, _ = self.green(matrix.diagonal, matrix.coupling, matrix.coupling, matrix.energy, initial=before)
            theta = theta.transpose(1, 2)
            return theta, None, {"theta": last_valid(stored(theta), None if state is None else state["theta"], valid)}
        y, theta, kept = applied(self.apply_resolvent, matrix, value, state, valid)
        return theta, y, kept

    def read_values(self, y: Tensor, gate: Tensor | None, behind: Tensor) -> Tensor:
        """Complex (B, N, H, M) → (B, N, 2 H M): real parts, then imaginary parts, of unit mean square times a learned
        gain, both times SiLU of the gate (B, N, H M); and behind them what is so laid, (B, N, E)."""
        return self.gated_norm(y.flatten(2), None if self.norm is None else self.norm.weight, gate, behind=behind)

    def read_phase(
        self, theta: Tensor, matrix: Sites, state: State, tokens: Tokens
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """δ and ξ, each (B, N, H), and their share of the state; θ⁰ belongs to the lattice without potentials."""
        before = None if state is None else restored(state["theta0"])
        vacuum = torch.zeros_like(matrix.diagonal.real)
        free, _ = self.green(vacuum, matrix.coupling, matrix.coupling, matrix.energy, initial=before)
        free = free.transpose(1, 2)
        increment = increments(free, theta)
        carried = None if state is None else state["xi"]
        shift = spectral_shift(increment, carried, tokens.resets)
        kept = {
            "theta0": last_valid(stored(free), None if state is None else state["theta0"], tokens.valid),
            "xi": last_valid(shift, carried, tokens.valid),
        }
        return {"phase": increment, "spectral_shift": shift}, kept

    def phase_features(self, phases: dict[str, Tensor]) -> list[Tensor]:
        """What of the phase the output reads."""
        if self.phase == "none":
            return []
        if self.phase == "increment":
            return [phases["phase"]]
        angle = torch.pi * phases["spectral_shift"]
        return [phases["phase"], angle.cos(), angle.sin()]


def local_exponents(theta: Tensor, hopping: Tensor) -> Tensor:
    """−½ log|p θ²| of each token, from θ (B, N, H) complex and |l| (H,), with p = |l|²: (B, N, H).

    Its mean over tokens is the Lyapunov exponent of the head. Source: mathematics §1.
    """
    # Half the log of the square, since torch's modulus of complex numbers takes twice as long on a CPU.
    return -hopping.log() - 0.5 * (theta.real.square() + theta.imag.square()).log()


@torch.no_grad()
def metrics(
    potential: Tensor, broadening: Tensor, theta: Tensor, hopping: Tensor, valid: Tensor | None
) -> dict[str, Tensor]:
    """Over valid tokens: ``broadening`` Γ + η with ``broadening_min`` and ``broadening_max``; ``overdamped``, the share
    with Γ + η > 10 |V|; ``lyapunov``, the mean over heads of their exponents, with ``lyapunov_min`` and
    ``lyapunov_max``; ``memory_length_max``, the inverse of the smallest, in tokens.

    V, Γ + η, θ (B, N, H); ``hopping`` |l| (H,); ``valid`` (B, N). Source: mathematics §1, §2.
    """
    exponents, overdamped = local_exponents(theta, hopping), broadening > OVERDAMPED * potential.abs()
    if valid is None:
        (smallest, largest), lyapunov = broadening.aminmax(), exponents.mean((0, 1))
        mean, overdamped = broadening.mean(), overdamped.to(broadening.dtype).mean()
    else:
        weight = _weights(broadening, valid)
        chosen = valid[..., None]
        lyapunov, mean, overdamped = (
            torch.einsum("bn,bnh->h", weight, x.to(broadening.dtype)) for x in (exponents, broadening, overdamped)
        )
        mean, overdamped = mean.mean(), overdamped.mean()
        smallest, largest = torch.where(chosen, broadening, torch.inf).amin(), torch.where(chosen, broadening, 0).amax()
    return {
        "broadening": mean,
        "broadening_min": smallest,
        "broadening_max": largest,
        "overdamped": overdamped,
        "lyapunov": lyapunov.mean(),
        "lyapunov_min": lyapunov.amin(),
        "lyapunov_max": lyapunov.amax(),
        "memory_length_max": 1 / lyapunov.amin().clamp(min=1e-6),
    }


@torch.no_grad()
def strengths(terms: Mapping[str, tuple[Tensor, Tensor]], valid: Tensor | None) -> dict[str, Tensor]:
    """``<potential>/strength``: root mean square of each potential's V (B, N, H) over heads and valid tokens."""
    found = {}
    for name, (potential, _) in terms.items():
        power = potential.square()
        mean = power.mean() if valid is None else (power.mean(-1) * _weights(power, valid)).sum()
        found[f"{name}/strength"] = mean.sqrt()
    return found


def _weights(like: Tensor, valid: Tensor) -> Tensor:
    """(B, N): equal over valid tokens, adding up to one."""
    return (valid / valid.sum().clamp(min=1)).to(like.dtype)
