"""Options of the experts, the routers and the routing monitor. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import attrs
from attrs import field, frozen, validators

from muse_core.component import Requirement, UseRouter


@frozen(kw_only=True)
class ExpertsOptions:
    """Feed-forward experts of which a router chooses some for every token."""

    experts: int = field(default=8, validator=[validators.ge(1), validators.le(1024)])
    """Number of experts E."""
    router: UseRouter = "mlp"
    """Who chooses. Learned scores of the token, ``mlp`` of muse-baseline, did better than ``scattering``."""
    multiple: float = field(default=4 / 3, validator=[validators.gt(0.0), validators.le(64.0)])
    """Hidden units of each expert as a multiple of the width, rounded to a multiple of 8. Two experts of 4/3 are as
    active as a dense layer of 8/3."""
    activation: Literal["swiglu", "gelu", "relu-squared"] = "swiglu"
    """swiglu has a third map, a gate."""
    capacity: float | None = field(default=None, validator=validators.optional(validators.gt(0.0)))
    """In training an expert takes at most this multiple of its equal share of each row's choices, first come first
    served; later ones are dropped. Default: no choice is dropped. Never in evaluation."""
    balance: float = field(default=0.01, validator=[validators.ge(0.0), validators.le(10.0)])
    """Weight of the load-balance loss, per token."""
    z_loss: float = field(default=0.001, validator=[validators.ge(0.0), validators.le(10.0)])
    """Weight of the squared logarithm of the router's partition sum, per token."""

    def problems(self, recipe: Any) -> Iterable[str]:
        refuse = getattr(self.router.options, "refuse", None)
        sentence = refuse(self.experts) if refuse else None
        if sentence:
            yield f"the router {self.router.name}: {sentence}"


@frozen(kw_only=True)
class ScatteringOptions:
    """Chooses experts by the phase and modulus of the resolvent before it; another number of them at resonance. Give
    that resolvent a potential of ``scale = 1.0``: 0.1, the default, hardly moves the phase; experts get no tokens."""

    top_k: int = field(default=2, validator=[validators.ge(1), validators.le(64)])
    """Experts of an ordinary token."""
    resonant_top_k: int | None = field(
        default=None, validator=validators.optional([validators.ge(1), validators.le(64)])
    )
    """Experts of a token at resonance. Default: as many as of any other, so that nothing depends on resonance, since
    more there and fewer elsewhere did worse."""
    resonance: float = field(default=0.8, validator=[validators.gt(0.0), validators.le(1.0)])
    """Quantile of the mean log |θ| above which a token is at resonance; 1 is never. Only with ``resonant_top_k``."""
    map: Literal["linear", "bins"] = "linear"
    """From features to logits. linear: a matrix on standardised features. bins: a table entry per feature and quantile
    bin."""
    channels: int = field(default=4, validator=[validators.ge(1), validators.le(256)])
    """Groups of neighbouring heads over which δ and log |θ| are averaged; each gives two features."""
    bins: int = field(default=4, validator=[validators.ge(2), validators.le(64)])
    """Quantile bins of a feature."""
    decay: float = field(default=0.9, validator=[validators.ge(0.0), validators.lt(1.0)])
    """Of the moving averages of quantiles, means and deviations, per optimiser step. At 0.99 they lag behind a young
    model: with 300 steps 0 to 5 % of tokens were at resonance where 20 % were due."""

    def __attrs_post_init__(self) -> None:
        if self.resonance != attrs.fields(type(self)).resonance.default and self.at_resonance == self.top_k:
            raise ValueError(
                f"resonance = {self.resonance} changes nothing while tokens at resonance have as many experts as the "
                f"others, {self.top_k} - give resonant_top_k another number or leave resonance out"
            )

    @property
    def at_resonance(self) -> int:
        """Experts of a token at resonance."""
        return self.top_k if self.resonant_top_k is None else self.resonant_top_k

    def requires(self) -> tuple[Requirement, ...]:
        """δ and θ of the nearest resolvent before."""
        return (Requirement("phase"), Requirement("theta"))

    def refuse(self, experts: int) -> str | None:
        """Why it cannot choose among this many."""
        for name, slots in (("top_k", self.top_k), ("resonant_top_k", self.at_resonance)):
            if slots > experts:
                return f"{name} = {slots} exceeds the number of experts, {experts} - lower it or raise experts"
        return None


@frozen(kw_only=True)
class ActOptions:
    """The halting probability of adaptive computation time, for [model] exit."""

    destinations: ClassVar[int] = 2

    halting: Literal["learned", "phase"] = "learned"
    """learned: from the stream. phase: from cos πξ and sin πξ of the phase accumulated since the document started,
    which needs a resolvent before the exit."""
    initial: float = field(default=0.1, validator=[validators.gt(0.0), validators.lt(1.0)])
    """Halting probability of every token after a block at the start."""

    def requires(self) -> tuple[Requirement, ...]:
        """ξ of the nearest resolvent before, for ``halting = "phase"``."""
        return (Requirement("spectral_shift"),) if self.halting == "phase" else ()

    def refuse(self, experts: int) -> str | None:
        """Why it cannot choose among this many."""
        if experts == self.destinations:
            return None
        return f"it decides between the next block and the head, not among {experts} experts - use it in [model] exit"


@frozen(kw_only=True)
class RoutingMonitorOptions:
    """Warns when experts collapse, and measures how many choices are the same as at the probe before."""

    share: float = field(default=0.1, validator=[validators.gt(0.0), validators.lt(1.0)])
    """An expert has collapsed when its load, averaged over steps, is below this part of an equal share."""
    decay: float = field(default=0.95, validator=[validators.ge(0.0), validators.lt(1.0)])
    """Of the average load, per step."""
    every: int = field(default=100, validator=validators.ge(1))
    """Steps between probes of agreement."""
    tokens: int = field(default=512, validator=[validators.ge(1), validators.le(65_536)])
    """Held-out tokens whose choices are compared, rounded up to whole sequences."""
