"""Which layer stands where, and which signals it reads and publishes. Torch-free: the recipe check uses it too."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from muse_core.component import Requirement, Use, grids, provided, required, walk
from muse_core.model.options import Exit, Placed, StackOptions

RESERVED = frozenset({"norms", "sites", "dropout"})
"""Names inside a block that are not a layer's."""
MODULE = frozenset("""
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double
    dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items
    keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty
    train training type update values xpu zero_grad
""".split())
"""Names that torch's modules use for themselves and could not give a layer; so are those that begin with _."""


@attrs.frozen(kw_only=True)
class Site:
    """One residual layer at one depth."""

    block: int
    """Depth index from 0."""
    name: str
    """Name within the block."""
    use: Use
    signals: Mapping[str, tuple[int, ...]]
    """Signals that earlier layers publish, with their trailing shapes."""
    publish: frozenset[str]
    """Signals of this layer that later layers read from it."""
    full_name: str = attrs.field(init=False)
    """``blocks.<block>.<name>``."""

    @full_name.default
    def _full_name(self) -> str:
        return f"blocks.{self.block}.{self.name}"


@attrs.frozen(kw_only=True)
class ExitSite:
    """The router that decides after one block who leaves."""

    block: int
    """Depth index of the block before it."""
    use: Use
    signals: Mapping[str, tuple[int, ...]]

    @property
    def full_name(self) -> str:
        return f"exits.{self.block}"


@attrs.frozen(kw_only=True)
class Plan:
    """The layers of a stack in order, and what is wrong with them."""

    blocks: tuple[tuple[Site, ...], ...]
    problems: tuple[tuple[str, str], ...]
    """(key path, sentence) pairs; empty when the stack can be built."""
    exits: tuple[ExitSite, ...] = ()


def periods(options: object) -> tuple[int, ...]:
    """The distinct periods, in tokens, at which components below these options act on their state."""
    return tuple(sorted(set(grids(options))))


def depths(at: str | None, depth: int) -> tuple[int, ...]:
    """The depths that ``at`` selects among ``range(depth)``; IndexError names an index that does not exist."""
    everything = range(depth)
    if at is None:
        return tuple(everything)
    if ":" in at:
        return tuple(everything[slice(*(int(part) if part else None for part in at.split(":")))])
    chosen = set()
    for part in at.split(","):
        index = int(part)
        if not -depth <= index < depth:
            raise IndexError(f"depth {index} does not exist in a stack of {depth} blocks (0 to {depth - 1})")
        chosen.add(index % depth)
    return tuple(sorted(chosen))


def plan(options: StackOptions, *, publish_all: bool = False) -> Plan:
    """Lay the blocks out and connect every required signal to the nearest earlier publisher.

    ``publish_all``: layers return every signal that they provide, read or not, for diagnostics.
    """
    problems: list[tuple[str, str]] = []
    order = _placements(options, problems)
    offers = {id(placed): provided(placed.layer.options, options.width) for placed in options.block}
    providers: dict[str, set[str]] = {}
    for _, name, placed in order:
        for signal in offers[id(placed)]:
            providers.setdefault(signal, set()).add(name)
    available: dict[str, tuple[int, tuple[int, ...]]] = {}
    reads: dict[int, set[str]] = {}
    before: list[dict[str, tuple[int, ...]]] = []
    exits: list[ExitSite] = []

    def read(use: Use, name: str, block: int, later: str) -> dict[str, tuple[int, ...]]:
        """Note what a component reads, or what it misses; returns what there is to read. ``later`` is the remedy when
        only a later layer provides it."""
        for need in required(use.options):
            if need.signal in available:
                reads.setdefault(available[need.signal][0], set()).add(need.signal)
            elif not need.optional:
                where = sorted(providers.get(need.signal, ()))
                problems.append((use.path, _unmet(need, name, block, where, later)))
        return {signal: shape for signal, (_, shape) in available.items()}

    for number, (block, name, placed) in enumerate(order):
        remedy = f'place it earlier, or keep {name} out of depth {block} with at = "{block + 1}:"'
        before.append(read(placed.layer, name, block, remedy))
        for signal, shape in offers[id(placed)].items():
            available[signal] = (number, shape)
        block_ends = number + 1 == len(order) or order[number + 1][0] != block
        if options.exit is not None and block_ends and options.exit.after - 1 <= block < options.depth - 1:
            use = options.exit.router
            signals = read(use, f"the exit {use.name}", block, f"set after = {block + 2}")
            exits.append(ExitSite(block=block, use=use, signals=signals))
    if options.exit is not None:
        problems += _exit_problems(options, options.exit)
    for number, (_, name, placed) in enumerate(order):
        offered = offers[id(placed)]
        if offered and getattr(placed.layer.options, "adds_nothing", False) and not reads.get(number):
            problems.append((placed.layer.path, _unread(name, sorted(offered))))
    blocks: list[list[Site]] = [[] for _ in range(options.depth)]
    for number, (block, name, placed) in enumerate(order):
        publish = frozenset(offers[id(placed)] if publish_all else reads.get(number, ()))
        blocks[block].append(
            Site(block=block, name=name, use=placed.layer, signals=before[number], publish=publish)
        )
    empty = [index for index, sites in enumerate(blocks) if not sites]
    if empty and not problems:
        problems.append(("model.block", f"no layer stands at depth {empty[0]}; widen an 'at' or lower model.depth"))
    return Plan(
        blocks=tuple(tuple(sites) for sites in blocks),
        problems=tuple(dict.fromkeys(problems)),
        exits=tuple(exits),
    )


def _placements(options: StackOptions, problems: list[tuple[str, str]]) -> list[tuple[int, str, Placed]]:
    """(depth, name, layer) in the order of computation; names and depths are checked."""
    chosen: list[tuple[str, Placed, frozenset[int]]] = []
    for placed in options.block:
        name = placed.name or placed.layer.name
        path = placed.layer.path
        if name in RESERVED or "." in name or name.startswith("_") or name in MODULE:
            problems.append((path, f'{name!r} cannot name a layer; set another with name = "…"'))
            continue
        try:
            where = depths(placed.at, options.depth)
        except IndexError as error:
            problems.append((f"{path}.at", f"{placed.at!r}: {error}"))
            continue
        if not where:
            problems.append((f"{path}.at", f"{placed.at!r} selects none of the {options.depth} blocks"))
        chosen.append((name, placed, frozenset(where)))
    order = []
    for block in range(options.depth):
        taken: set[str] = set()
        for name, placed, where in chosen:
            if block not in where:
                continue
            if name in taken:
                sentence = f'a second layer named {name!r} in one block; tell them apart with name = "…"'
                problems.append((placed.layer.path, sentence))
                continue
            taken.add(name)
            order.append((block, name, placed))
    return order


def _unread(name: str, offered: list[str]) -> str:
    """Why a layer that only publishes is of no use."""
    return (
        f"{name} adds nothing to the stream, and no later layer reads what it publishes ({', '.join(offered)}) - place "
        "a layer after it that does, or leave it out"
    )


def _exit_problems(options: StackOptions, exit: Exit) -> list[tuple[str, str]]:
    """Why tokens cannot leave this stack early."""
    path = exit.router.path
    found = []
    if exit.after >= options.depth:
        found.append((path, f"after = {exit.after} leaves no block to skip in a stack of depth {options.depth}"))
    for placed in options.block:
        within = [use.name for use in walk(placed.layer.options) if use.kind == "filter"]
        if within:
            found.append((path, f"tokens that leave early would leave the period grid on which {' and '.join(within)} "
                          f"of {placed.layer.name} act - leave out the exit or the filters"))
        elif grids(placed.layer.options):
            found.append((path, f"tokens that leave early would leave the grid of positions on which the memory of "
                          f"{placed.layer.name} starts afresh - leave out the exit or that layer"))
    refuse = getattr(exit.router.options, "refuse", None)
    sentence = refuse(2) if refuse else None
    return found + ([(path, sentence)] if sentence else [])


def _unmet(need: Requirement, name: str, block: int, providers: list[str], later: str) -> str:
    if providers:
        return (
            f"{name} at depth {block} reads the signal {need.signal!r}, which {' and '.join(providers)} provides only "
            f"later; {later}"
        )
    sentence = f"{name} reads the signal {need.signal!r}, which no layer of this model provides"
    return f"{sentence} - {need.remedy}" if need.remedy else sentence
