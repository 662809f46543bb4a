"""What is shown ends before a stop string, whatever pieces the text comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muse_core.model.stopping import UntilStop


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=2), st.integers(1, 4))
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str], size: int) -> None:
    until = UntilStop(stops)
    shown = "".join(until.add(text[start : start + size]) for start in range(0, len(text), size))
    shown += until.add("", final=True)
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if size == 1 and places:  # the string that is complete first ends the text
        first = min((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
        ending = [text.find(stop) for stop in stops if stop in text and text.find(stop) + len(stop) == first[0]]
        assert shown == text[: min(ending)]
    elif not places:
        assert shown == text and not until.stopped
    else:
        assert until.stopped and text.startswith(shown)


def test_a_possible_beginning_is_held_back_and_nothing_else() -> None:
    until = UntilStop(["\n\n"])
    assert [until.add("a\n"), until.add("b"), until.add("\n"), until.add("\nc")] == ["a", "\nb", "", ""]
    assert until.stopped and until.add("more") == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        UntilStop([""])
