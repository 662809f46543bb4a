"""One hook per kind of component. A plugin module implements those it fills and yields rows; nothing else is hooked:
no lifecycle, no order, no hot path. Every example below is executed by a test."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from muse_core.component import Component
from muse_core.kinds import ROWS

PROJECT = "muse"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """Hook specifications, plural nouns. Each returns an iterable of :class:`~muse_core.component.Component`."""

    @hookspec
    def muse_potentials(self) -> Iterable[Component]:
        """Terms V − iΓ of the Hamiltonian's diagonal.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class WellOptions:
                '''A constant well.'''
                depth: float = 1.0
                '''Depth of the well, in units of the hopping.'''

            @hookimpl
            def muse_potentials():
                yield Component("well", options=WellOptions, implementation="example_well.potential:Well")

        Returns: rows whose implementation follows ``contracts.Potential``.
        """

    @hookspec
    def muse_memory_layers(self) -> Iterable[Component]:
        """Layers that write what they read into a state of fixed size. They share their names with layers.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class TraceOptions:
                '''An exponential moving average of the stream.'''
                decay: float = attrs.field(default=0.9, validator=attrs.validators.and_(
                    attrs.validators.ge(0.0), attrs.validators.lt(1.0)))
                '''Share of the average that survives one token.'''

            @hookimpl
            def muse_memory_layers():
                yield Component("trace", options=TraceOptions, implementation="example_trace.layer:Trace")

        Returns: rows whose implementation follows ``contracts.Layer``.
        """

    @hookspec
    def muse_routers(self) -> Iterable[Component]:
        """Choices of experts per token.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class RoundRobinOptions:
                '''Position modulo the number of experts: a control.'''

            @hookimpl
            def muse_routers():
                yield Component("round-robin", options=RoundRobinOptions, implementation="example_robin:RoundRobin")

        Returns: rows whose implementation follows ``contracts.Router``.
        """

    @hookspec
    def muse_initializers(self) -> Iterable[Component]:
        """Initial values of the parameters that a recipe names by pattern.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class ScaledOptions:
                '''Normal values of a given standard deviation.'''
                std: float = attrs.field(default=0.02, validator=attrs.validators.gt(0.0))
                '''Standard deviation.'''

            @hookimpl
            def muse_initializers():
                yield Component("scaled", options=ScaledOptions, implementation="example_scaled:Scaled")

        Returns: rows whose implementation follows ``contracts.Initializer``.
        """

    @hookspec
    def muse_kernel_backends(self) -> Iterable[Component]:
        """Implementations of the operations of muse-kernels.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class CudaOptions:
                '''Kernels written in CUDA C++.'''

            @hookimpl
            def muse_kernel_backends():
                yield Component("cuda-cpp", options=CudaOptions, implementation="example_cuda.backend:Cuda")

        Returns: rows whose implementation follows ``contracts.KernelBackend``.
        """

    @hookspec
    def muse_safety_monitors(self) -> Iterable[Component]:
        """Judges of the training loop: continue, skip, rollback or halt.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class CeilingOptions:
                '''Halts when the loss exceeds a ceiling.'''
                nats: float = attrs.field(default=20.0, validator=attrs.validators.gt(0.0))
                '''Loss per token above which the run halts.'''

            @hookimpl
            def muse_safety_monitors():
                yield Component("ceiling", options=CeilingOptions, implementation="example_ceiling:Ceiling")

        Returns: rows whose implementation follows ``contracts.Monitor``.
        """

    @hookspec
    def muse_layers(self) -> Iterable[Component]:
        """Residual sub-layers: mixers, feed-forward networks, positions.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class ShiftOptions:
                '''Mixes each token with its predecessor.'''
                provides = lambda self, width: {"previous": (width,)}

            @hookimpl
            def muse_layers():
                yield Component("shift", options=ShiftOptions, implementation="example_shift.layer:Shift")

        Returns: rows whose implementation follows ``contracts.Layer``.
        """

    @hookspec
    def muse_filters(self) -> Iterable[Component]:
        """Filters of fast weights, applied once a period.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class ClipOptions:
                '''Bounds every entry.'''
                bound: float = attrs.field(default=10.0, validator=attrs.validators.gt(0.0))
                '''Largest magnitude that an entry keeps.'''

            @hookimpl
            def muse_filters():
                yield Component("clip", options=ClipOptions, implementation="example_clip:Clip")

        Returns: rows whose implementation follows ``contracts.Filter``.
        """

    @hookspec
    def muse_models(self) -> Iterable[Component]:
        """Whole models; the core's ``stack`` is one.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class BigramOptions:
                '''A table of next-token scores.'''

            @hookimpl
            def muse_models():
                yield Component("bigram", options=BigramOptions, implementation="example_bigram:Bigram")

        Returns: rows whose implementation follows ``contracts.Model``.
        """

    @hookspec
    def muse_stages(self) -> Iterable[Component]:
        """Objectives of the one loop; the core's ``train`` is one.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class DistilOptions:
                '''Learns from a teacher's logits.'''
                temperature: float = attrs.field(default=2.0, validator=attrs.validators.gt(0.0))
                '''Softening of both distributions.'''

            @hookimpl
            def muse_stages():
                yield Component("distil", options=DistilOptions, implementation="example_distil:Distil")

        Returns: rows whose implementation follows ``contracts.Stage``.
        """

    @hookspec
    def muse_sources(self) -> Iterable[Component]:
        """Where text comes from.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class MailOptions:
                '''Messages of a local mbox file.'''
                path: str
                '''The mbox file.'''

            @hookimpl
            def muse_sources():
                yield Component("mbox", options=MailOptions, implementation="example_mail:Mbox")

        Returns: rows whose implementation follows ``contracts.Source``.
        """

    @hookspec
    def muse_optimizers(self) -> Iterable[Component]:
        """Update rules; the core's ``adamw`` and ``muon`` are two.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class SignOptions:
                '''Steps of the sign of a running mean of the gradient.'''
                momentum: float = attrs.field(default=0.9, validator=[
                    attrs.validators.ge(0.0), attrs.validators.lt(1.0)])
                '''Decay of the running mean.'''

            @hookimpl
            def muse_optimizers():
                yield Component("sign", options=SignOptions, implementation="example_sign:Sign")

        Returns: rows whose implementation follows ``contracts.Optimizer``.
        """

    @hookspec
    def muse_schedules(self) -> Iterable[Component]:
        """Learning rates over the updates of a run; the core's ``cosine`` and ``wsd`` are two.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class RootOptions:
                '''The inverse square root of the number of updates.'''

            @hookimpl
            def muse_schedules():
                yield Component("inverse-root", options=RootOptions, implementation="example_root:InverseRoot")

        Returns: rows whose implementation follows ``contracts.Schedule``.
        """

    @hookspec
    def muse_tokenizers(self) -> Iterable[Component]:
        """How text becomes tokens; the core's ``bytes``, ``bpe``, ``gpt2`` and ``file`` are some.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class NibbleOptions:
                '''Two tokens a byte, one for each half.'''

            @hookimpl
            def muse_tokenizers():
                yield Component("nibbles", options=NibbleOptions, implementation="example_nibbles:Nibbles")

        Returns: rows whose implementation follows ``contracts.TokenizerMaker``.
        """

    @hookspec
    def muse_sinks(self) -> Iterable[Component]:
        """Where the numbers of a run go besides metrics.jsonl; the core's ``tensorboard`` is one.

        Example::

            import attrs
            from muse_core.component import Component
            from muse_core.hookspecs import hookimpl

            @attrs.frozen(kw_only=True)
            class MailOptions:
                '''A message at the end of the run.'''
                to: str
                '''Who gets it.'''

            @hookimpl
            def muse_sinks():
                yield Component("mail", options=MailOptions, implementation="example_mail.sink:Mail")

        Returns: rows whose implementation follows ``contracts.Sink``.
        """


HOOK_OF_KIND = {row.name: row.hook for row in ROWS}
"""The hook that lists the components of a kind."""
