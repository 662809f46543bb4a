"""Who provides which component among the plugins of this project, so that a message about a missing one can say what
to install. Names only: nothing here is loaded, and a name outside this table works just the same."""

from __future__ import annotations

from muse_core.kinds import NAMESPACE

PROVIDES: dict[str, tuple[tuple[str, str], ...]] = {
    "muse-baseline": (
        ("layer", "attention"),
        ("layer", "convolution"),
        ("layer", "feed-forward"),
        ("router", "mlp"),
    ),
    "muse-cvfp": (
        ("initializer", "safetensors"),
        ("model", "cvfp"),
        ("model", "gru"),
        ("stage", "context-fixed"),
        ("stage", "fixed-point"),
        ("stage", "token-embeddings"),
    ),
    "muse-fla": (("kernel backend", "fla"),),
    "muse-gate-ablation": (
        ("layer", "polarisation"),
        ("safety monitor", "gate-ablation"),
        ("safety monitor", "gate-collapse"),
    ),
    "muse-gradient-safety": (("safety monitor", "gradient-safety"),),
    "muse-fast-weights": (("memory layer", "fast-weights"),),
    "muse-koopman": (
        ("model", "compressed"),
        ("stage", "koopman-compress"),
        ("stage", "koopman-distil"),
    ),
    "muse-mag": (
        ("layer", "mag"),
        ("layer", "persistent-memory"),
        ("layer", "sliding-window"),
        ("memory layer", "atlas"),
        ("memory layer", "earlier-memory"),
        ("memory layer", "qk-projection"),
    ),
    "muse-mqar": (("source", "mqar"), ("source", "needle")),
    "muse-niah-probe": (("safety monitor", "niah-probe"),),
    "muse-peers": (
        ("layer", "rg-lru"),
        ("memory layer", "gated-deltanet"),
        ("memory layer", "gated-deltanet-2"),
        ("memory layer", "gla"),
        ("memory layer", "kda"),
        ("memory layer", "mamba2"),
        ("memory layer", "mamba3"),
        ("memory layer", "rwkv7"),
    ),
    "muse-potentials": (
        ("potential", "hermitian"),
        ("potential", "memory-feedback"),
        ("potential", "non-hermitian"),
    ),
    "muse-prime-bump": (("initializer", "prime-bump"), ("potential", "prime-bump")),
    "muse-resolvent": (("layer", "resolvent"),),
    "muse-resonance": (("filter", "resonance"),),
    "muse-rollback": (("safety monitor", "perplexity-spike"), ("safety monitor", "rollback")),
    "muse-scattering-router": (
        ("layer", "experts"),
        ("router", "act"),
        ("router", "scattering"),
        ("safety monitor", "routing"),
    ),
    "muse-snr-filter": (("filter", "snr"),),
    "muse-text-sources": (
        ("source", "files"),
        ("source", "hub"),
        ("source", "mix"),
        ("source", "python-library"),
        ("source", "state-of-the-union"),
    ),
    "muse-torch-bk": (("kernel backend", "native"), ("kernel backend", "reference"), ("kernel backend", "torch")),
    "muse-trace-attention": (("layer", "trace-attention"),),
    "muse-trackers": (("sink", "trackio"), ("sink", "wandb")),
    "muse-triton-bk": (("kernel backend", "triton"),),
    "muse-zeta-init": (
        ("initializer", "orthogonal"),
        ("initializer", "random-spectrum"),
        ("initializer", "zeta"),
        ("layer", "zeta-positions"),
    ),
}
"""Distribution → (kind, name) of its components. A test compares it with what the folders under plugins/ register."""


def providers(kind: str, name: str) -> list[tuple[str, str]]:
    """Bundled distributions that provide a component: (distribution, folder in the repository)."""
    return [
        (distribution, f"./plugins/{distribution.removeprefix('muse-')}")
        for distribution, rows in PROVIDES.items()
        for row_kind, row_name in rows
        if row_name == name and kind in (row_kind, NAMESPACE[row_kind])
    ]
