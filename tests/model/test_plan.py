"""Where layers stand and which signals reach them."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muse_core.component import Requirement, Use
from muse_core.model.options import Placed, StackOptions
from muse_core.model.plan import depths, plan


@attrs.frozen(kw_only=True)
class Layer:
    gives: tuple[str, ...] = ()
    needs: tuple[Requirement, ...] = ()

    def provides(self, width: int) -> dict[str, tuple[int, ...]]:
        return {name: (width, index) for index, name in enumerate(self.gives)}

    def requires(self) -> tuple[Requirement, ...]:
        return self.needs


def placed(component: str, *, at: str | None = None, name: str | None = None, **options: object) -> Placed:
    use = Use(
        kind="layer", name=component, distribution="d", version="1", implementation="m:C", options=Layer(**options),
        path=f"model.block[{component}]",
    )
    return Placed(layer=use, at=at, name=name)


def stack(*block: Placed, depth: int = 3) -> StackOptions:
    return StackOptions(width=8, depth=depth, block=block)


@given(st.integers(1, 12), st.lists(st.integers(-12, 11), min_size=1, max_size=4))
def test_indices_select_what_python_would(depth: int, indices: list[int]) -> None:
    text = ",".join(map(str, indices))
    if all(-depth <= index < depth for index in indices):
        assert depths(text, depth) == tuple(sorted({range(depth)[index] for index in indices}))
    else:
        with pytest.raises(IndexError, match="does not exist"):
            depths(text, depth)


part = st.none() | st.integers(-12, 12)


@given(st.integers(1, 12), part, part, st.none() | st.integers(1, 5))
def test_slices_select_what_python_would(depth: int, start: int | None, stop: int | None, step: int | None) -> None:
    text = f"{'' if start is None else start}:{'' if stop is None else stop}" + ("" if step is None else f":{step}")
    assert depths(text, depth) == tuple(range(depth)[start:stop:step])


def test_nearest_earlier_publisher_serves_a_signal_and_only_it_publishes() -> None:
    found = plan(stack(placed("a", gives=("s",)), placed("b", gives=("s",)),
                       placed("c", needs=(Requirement("s"),)), depth=1))
    assert not found.problems
    assert [site.publish for site in found.blocks[0]] == [frozenset(), {"s"}, frozenset()]
    assert found.blocks[0][2].signals == {"s": (8, 0)}


def test_signal_of_a_later_layer_is_refused_at_the_first_depth_with_the_remedy() -> None:
    reader, giver = placed("reader", needs=(Requirement("s"),)), placed("giver", gives=("s",))
    ((path, sentence),) = plan(stack(reader, giver)).problems
    assert path == "model.block[reader]"
    assert "depth 0" in sentence and "giver" in sentence and 'at = "1:"' in sentence
    later = plan(stack(attrs.evolve(reader, at="1:"), giver))
    assert not later.problems
    assert [site.publish for site in later.blocks[1]] == [frozenset(), {"s"}]
    assert later.blocks[2][1].publish == frozenset(), "nothing reads the last one"


def test_optional_signal_may_be_absent() -> None:
    found = plan(stack(placed("reader", needs=(Requirement("s", optional=True),))))
    assert not found.problems and found.blocks[0][0].signals == {}


def test_unknown_signal_repeated_name_and_empty_depth_are_named() -> None:
    def sentences(*block: Placed) -> str:
        return " ".join(sentence for _, sentence in plan(stack(*block)).problems)

    assert "no layer of this model provides" in sentences(placed("reader", needs=(Requirement("s"),)))
    assert "second layer named 'a'" in sentences(placed("a"), placed("a"))
    assert not sentences(placed("a"), placed("a", name="b"))
    assert "depth 7 does not exist" in sentences(placed("a", at="7"))
    assert "no layer stands at depth 1" in sentences(placed("a", at="0"))
    assert "selects none" in sentences(placed("b"), placed("a", at="9:"))
