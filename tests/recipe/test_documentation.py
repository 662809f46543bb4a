"""Help, ranges and types are read from the options classes themselves."""

from typing import Literal

import attrs
import pytest
from attrs import validators

from muse_core.component import UseFilter, UseInitializer, UseOptimizer
from muse_core.options.describe import field_documentation, options_of, source_of, type_description
from muse_core.options.ranges import range_of


@attrs.frozen(kw_only=True)
class Base:
    """A base."""

    first: int = 1
    """The first.

    In two paragraphs.
    """


@attrs.frozen(kw_only=True)
class Options(Base):
    """Some options."""

    second: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0.0)))
    """The second."""
    bare: str = ""
    from_: tuple[UseFilter, ...] = attrs.field(default=("snr",), metadata={"key": "from"})
    """The last."""

    def method(self):
        """Not an option."""


def test_strings_under_fields_are_their_help_and_bases_count():
    texts = {name: text for name, (text, _) in field_documentation(Options).items()}
    assert texts == {
        "first": "The first.\n\nIn two paragraphs.", "second": "The second.", "bare": "", "from_": "The last."}


def test_lines_are_those_of_the_file():
    lines = open(__file__).read().split("\n")
    for option in options_of(Options):
        assert lines[option.line - 1].strip().startswith(f"{option.field.name}:")
    assert lines[source_of(Options)[1] - 1] == "class Options(Base):"


def test_keys_defaults_and_requirement():
    options = {option.key: option for option in options_of(Options)}
    assert list(options) == ["first", "second", "bare", "from"]
    assert options["from"].default == ("snr",) and not options["from"].required


def test_a_class_made_in_a_function_is_found():
    @attrs.frozen(kw_only=True)
    class Inner:
        """Inner."""

        size: int = 1
        """Its size."""

    assert field_documentation(Inner)["size"][0] == "Its size."


def test_a_class_without_source_has_no_help_but_works():
    made = attrs.make_class("Made", {"size": attrs.field(type=int, default=1)}, frozen=True, kw_only=True)
    made.__module__ = "no_such_module"
    assert field_documentation(made) == {} and source_of(made) is None


@pytest.mark.parametrize(
    "annotation, words",
    [
        (int, "a whole number"),
        (float | None, "a number"),
        (bool, "true or false"),
        (Literal["a", "b", 3], "'a' or 'b' or 3"),
        (Literal["auto"] | int, "'auto' or a whole number"),
        (tuple[int, ...], "a list of whole numbers"),
        (tuple[float, float], "a list of 2: a number, a number"),
        (tuple[UseFilter, ...], "a list of filters"),
        (UseFilter, "a filter"),
        (UseOptimizer, "an optimizer"),
        (tuple[UseInitializer, ...], "a list of initializers"),
        (Base, "a table"),
    ],
)
def test_types_in_words(annotation, words):
    assert type_description(annotation) == words


@pytest.mark.parametrize(
    "validator, words",
    [
        (None, ""),
        (validators.ge(1), "at least 1"),
        ([validators.gt(0.0), validators.lt(0.5)], "more than 0.0 and less than 0.5"),
        (validators.optional(validators.and_(validators.ge(1), validators.le(9))), "at least 1 and at most 9"),
        (validators.in_((1, 2)), "one of 1, 2"),
        (validators.min_len(1), "at least 1 long"),
        (validators.max_len(3), "at most 3 long"),
        (validators.matches_re("a+"), "of the form a+"),
        (validators.deep_iterable(validators.ge(0)), "a list whose items are each at least 0"),
        (lambda instance, attribute, value: None, ""),
    ],
)
def test_ranges_in_words(validator, words):
    assert str(range_of(validator)) == words
