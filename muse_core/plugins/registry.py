"""What the installed plugins offer, and finding a component by the name that a recipe gives."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from muse_core.component import Component
from muse_core.errors import typed
from muse_core.kinds import KINDS, NAMESPACE, with_article
from muse_core.plugins.bundled import providers
from muse_core.plugins.discovery import CORE, Discovered, normalised
from muse_core.plugins.near import near, suggestion


@attrs.frozen(kw_only=True)
class Registered:
    """A component with the distribution that offers it."""

    kind: str
    component: Component
    distribution: str
    version: str
    entry_point: str
    module: str
    """Module of the hook."""
    path: str | None = None
    """Source file of the module."""

    @property
    def name(self) -> str:
        return self.component.name

    @property
    def reference(self) -> str:
        """Name that is unambiguous whatever else is installed."""
        return f"{self.name}@{self.distribution}"


@attrs.frozen(kw_only=True)
class Problem:
    """One line about a plugin: what is wrong and what to do."""

    distribution: str
    version: str
    entry_point: str
    what: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f" - {self.advice}" if self.advice else ""
        return f"{self.distribution} {self.version} ({self.entry_point}): {self.what}{advice}"


@attrs.frozen(kw_only=True)
class Loaded:
    """One entry point after loading."""

    plugin: Discovered
    path: str | None = None
    """Source file of its module."""
    seconds: float = 0.0
    """Wall clock of its import."""
    rows: tuple[Registered, ...] = ()
    problems: tuple[Problem, ...] = ()
    excluded: str | None = None
    """Who left it out (an allow or deny list); it was not imported then."""


class UnknownComponent(LookupError):
    """No component, several, or a broken one stands behind a name. The message says what to do."""


def _by_name(registry: Registry) -> dict[str, list[Registered]]:
    """What is offered under each name: a recipe asks several times for each of its components."""
    found: dict[str, list[Registered]] = {}
    for row in registry.rows():
        found.setdefault(row.name, []).append(row)
    return found


@attrs.frozen
class Registry:
    """Every installed plugin, loaded or not."""

    plugins: tuple[Loaded, ...]
    preferred: frozenset[str] = frozenset()
    """Distributions that a bare name means where several offer it: those that a run was made with."""
    _named: dict[str, list[Registered]] = attrs.field(
        init=False, repr=False, eq=False, default=attrs.Factory(_by_name, takes_self=True)
    )

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong with the installed plugins, by distribution; clashes of names last."""
        return self.broken + tuple(self._clashes())

    @property
    def broken(self) -> tuple[Problem, ...]:
        """What is wrong with plugins themselves. A clash of names is none: a recipe that could mean either of two is
        refused, and one that says which is right."""
        return tuple(problem for loaded in self.plugins if not loaded.excluded for problem in loaded.problems)

    def rows(self, kind: str | None = None) -> tuple[Registered, ...]:
        """Components of a kind, or of all kinds, in the order of kinds, names and distributions."""
        found = [
            row for loaded in self.plugins if not loaded.excluded for row in loaded.rows if kind in (None, row.kind)
        ]
        return tuple(sorted(found, key=lambda row: (KINDS.index(row.kind), row.name, row.distribution)))

    def only(self, allow: Iterable[str] | None = None, deny: Iterable[str] = ()) -> Registry:
        """The same without the distributions that the lists leave out; the core always stays."""
        return Registry(tuple(
            attrs.evolve(loaded, excluded=loaded.excluded or exclusion(loaded.plugin.distribution, allow, deny))
            for loaded in self.plugins
        ), self.preferred)

    def preferring(self, distributions: Iterable[str]) -> Registry:
        """The same where a bare name that several distributions offer is that of one of these, if one alone does."""
        return attrs.evolve(self, preferred=frozenset(normalised(name) for name in distributions))

    def offers(self, kind: str, name: str) -> tuple[Registered, ...]:
        """Every component of this name that may stand where ``kind`` is asked for. Asking for a layer also finds
        memory layers; asking for a memory layer finds no other layer."""
        name, _, distribution = name.partition("@")
        found = tuple(
            row for row in self._named.get(name, ())
            if _answers(row, kind, name) and distribution in ("", row.distribution)
        )
        meant = tuple(row for row in found if normalised(row.distribution) in self.preferred)
        return meant if len(meant) == 1 else found

    def find(self, kind: str, name: str) -> Registered:
        """The component of this name, which may be ``name@distribution``.

        Raises UnknownComponent with near names, with both distributions of a clash, or with the cause why the
        plugin that provides it does not load.
        """
        offers = self.offers(kind, name)
        if len(offers) == 1:
            return offers[0]
        if offers:
            owners = " and ".join(f"{row.distribution} {row.version}" for row in offers)
            choices = " or ".join(repr(row.reference) for row in offers)
            raise UnknownComponent(f"{owners} both offer {with_article(kind)} {name!r} - write use = {choices}")
        raise UnknownComponent(self._missing(kind, name))

    def reference(self, kind: str, name: str, distribution: str) -> str:
        """How a recipe names this component: the bare name unless another distribution offers it too."""
        return name if len(self.offers(kind, name)) < 2 else f"{name}@{distribution}"

    def _missing(self, kind: str, reference: str) -> str:
        name, _, distribution = reference.partition("@")
        missing = f"there is no {kind} {reference!r}"
        owners = self.offers(kind, name)
        if distribution and owners:
            offered = " and ".join(row.distribution for row in owners)
            if all(loaded.plugin.distribution != normalised(distribution) for loaded in self.plugins):
                offer = "offers" if len(owners) == 1 else "offer"
                return f"{missing}: {distribution!r} is not installed - {offered} {offer} {name!r}"
            return f"{missing}: {distribution} does not offer it - {offered} {'does' if len(owners) == 1 else 'do'}"
        for provider, folder in providers(kind, name):
            state = self._state(provider)
            if state is not None:
                return f"{missing}: {state}"
            return f"{missing}: {provider} provides it and is not installed - pip install {typed(folder)}"
        for loaded in self.plugins:
            if loaded.excluded and any(_answers(row, kind, name) for row in loaded.rows):
                return f"{missing}: {self._state(loaded.plugin.distribution)}"
        names = sorted({row.name for row in self.rows() if kind in (row.kind, NAMESPACE[row.kind])})
        others = [row for row in self.rows() if row.name == name]
        if others:
            close = near(name, names)
            hint = f" - did you mean {close!r}?" if close else ""
            return f"{missing}: {name!r} is a {others[0].kind} of {others[0].distribution}{hint}"
        return f"{missing}{suggestion(name, names, f'installed {kind}s')}{self._silent()}"

    def _silent(self) -> str:
        """Plugins that might have provided something, but could not say so."""
        broken = sorted({
            loaded.plugin.distribution for loaded in self.plugins
            if loaded.problems and not loaded.rows and not loaded.excluded
        })
        excluded = sorted({loaded.plugin.distribution for loaded in self.plugins if loaded.excluded})
        cause = f"; {', '.join(broken)} did not load (muse plugins list)" if broken else ""
        return cause + (f"; left out by the recipe's [plugins]: {', '.join(excluded)}" if excluded else "")

    def _state(self, distribution: str) -> str | None:
        """Why an installed distribution provides nothing; None when it is not installed."""
        for loaded in self.plugins:
            if loaded.plugin.distribution != distribution:
                continue
            if loaded.excluded:
                return f"{distribution} provides it and is left out by {loaded.excluded}"
            if loaded.problems:
                return f"{distribution} provides it and does not load: {loaded.problems[0].what}"
        return None

    def _clashes(self) -> Iterable[Problem]:
        seen: dict[tuple[str, str], Registered] = {}
        for row in self.rows():
            first = seen.setdefault((NAMESPACE[row.kind], row.name), row)
            if first is not row:
                yield Problem(
                    distribution=row.distribution,
                    version=row.version,
                    entry_point=row.entry_point,
                    what=f"offers {with_article(row.kind)} {row.name!r} like {first.distribution} {first.version}",
                    advice=f"recipes must write {row.reference!r} or {first.reference!r}",
                )


def _answers(row: Registered, kind: str, name: str) -> bool:
    return row.name == name and kind in (row.kind, NAMESPACE[row.kind])


def exclusion(distribution: str, allow: Iterable[str] | None, deny: Iterable[str]) -> str | None:
    """Which list leaves a distribution out: ``"plugins.deny"``, ``"plugins.allow"`` or None."""
    if distribution == CORE:
        return None
    if distribution in map(normalised, deny):
        return "plugins.deny"
    if allow is not None and distribution not in map(normalised, allow):
        return "plugins.allow"
    return None
