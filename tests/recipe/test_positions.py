"""The walk over a TOML text agrees with tomllib about every key, and knows its line."""

import itertools
import json
import sys
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.recipe.positions import MAX_DEPTH, MAX_ITEMS, MAX_KEY_PARTS, MAX_SCALAR, TooMuch, positions


def paths(value, path=()):
    """Every key path and array index of a parsed document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield (*path, step)
        yield from paths(item, (*path, step))


BARE = st.text("abcXYZ019_-", min_size=1, max_size=3)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\"'\\#[]{}=,.\t"), max_size=8)
LITERAL = TEXT.filter(lambda text: "'" not in text)
QUOTED = TEXT.map(lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", ""))
KEY = BARE | QUOTED | LITERAL.map(lambda text: f"'{text}'")
SPACE = st.sampled_from(["", " ", "\t", "  "])
DOTTED = st.lists(KEY, min_size=1, max_size=3).flatmap(
    lambda parts: st.lists(SPACE, min_size=2 * len(parts), max_size=2 * len(parts)).map(
        lambda spaces: ".".join(a + part + b for part, a, b in zip(parts, spaces[::2], spaces[1::2]))))
SCALAR = st.one_of(
    st.integers(-10**6, 10**6).map(str),
    st.sampled_from(["1_000", "0xdead_BEEF", "0o17", "1e5", "-3.5E-3", "inf", "-nan", "true", "false", "1979-05-27",
                     "1979-05-27 07:32:00", "1979-05-27T07:32:00.5+01:00", "07:32:00"]),
    QUOTED,
    LITERAL.map(lambda text: f"'{text}'"),
    TEXT.map(lambda text: '"""' + text.replace("\\", "\\\\").replace('"""', '""').strip('"') + '\n"x"""'),
    st.sampled_from(['""""a"""""', "''''a'''''", '"""\\\n   b"""', '""""""', "''''''", '"""a\\"""" """']),
    LITERAL.map(lambda text: f"'''{text}\n\n'x'''"),
)
COMMENT = st.sampled_from(["", " # c", " # [x] = 'y' \"", "\t#"])
GAP = st.sampled_from(["", " ", "\n", " # c ] \n\t"])


def arrays(values):
    item = st.tuples(GAP, values, GAP).map("".join)
    return st.tuples(st.lists(item, max_size=3), st.sampled_from(["", ",", " ,\n"]), GAP).map(
        lambda made: "[" + ",".join(made[0]) + (made[1] if made[0] else "") + made[2] + "]")


def inline_tables(values):
    pair = st.tuples(DOTTED, SPACE, values).map(lambda made: f"{made[0]}={made[1]}{made[2]}")
    return st.lists(pair, max_size=3).map(lambda pairs: "{" + " , ".join(pairs) + "}")


VALUE = st.recursive(SCALAR, lambda values: arrays(values) | inline_tables(values), max_leaves=5)
STATEMENT = st.one_of(
    st.tuples(DOTTED, SPACE, VALUE, COMMENT).map(lambda made: f"{made[0]}={made[1]}{made[2]}{made[3]}"),
    st.tuples(DOTTED, COMMENT).map(lambda made: f"[{made[0]}]{made[1]}"),
    st.tuples(DOTTED, COMMENT).map(lambda made: f"[[{made[0]}]]{made[1]}"),
    COMMENT,
)
DOCUMENT = st.lists(STATEMENT, max_size=8).map("\n".join)


@settings(max_examples=120, deadline=None)
@given(DOCUMENT)
def test_every_key_that_tomllib_finds_has_a_line_and_no_other(text):
    try:
        parsed = tomllib.loads(text)
    except ValueError:
        positions(text)  # only must not fail
        return
    assert set(positions(text)) == set(paths(parsed))


@settings(max_examples=300, deadline=None)
@given(st.text("ab.=[]{}\"'\\#,\n 1", max_size=30))
def test_it_never_stumbles_where_tomllib_reads_on(text):
    try:
        parsed = tomllib.loads(text)
    except ValueError:
        positions(text)
        return
    assert set(positions(text)) == set(paths(parsed))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_line_is_the_one_where_the_key_is_written(data):
    numbers = itertools.count()
    lines, expected, prefix = [], {}, ()
    for _ in range(data.draw(st.integers(1, 8))):
        key = f"key{next(numbers)}"
        shape = data.draw(st.sampled_from(["pair", "text", "array", "table", "tables"]))
        if shape in ("table", "tables"):
            lines.append(f"[[{key}]]" if shape == "tables" else f"[{key}]")
            expected[(key,)] = len(lines)
            prefix = (key, 0) if shape == "tables" else (key,)
            continue
        expected[(*prefix, key)] = len(lines) + 1
        if shape == "pair":
            lines.append(f"{key} = 1")
        elif shape == "text":
            lines += [f'{key} = """', "key0 = 5 # not a key", '"""']
        else:
            lines += [f"{key} = [", "  1, # one", "  {deep = 2},", "]"]
            expected[(*prefix, key, 1, "deep")] = len(lines) - 1
    text = "\n".join(lines)
    tomllib.loads(text)
    found = positions(text)
    assert {path: found[path] for path in expected} == expected


@pytest.mark.parametrize(
    "text, line, what",
    [
        ("a = 1\n" + ".".join("b" * (MAX_KEY_PARTS + 1)) + " = 2", 2, "dotted key of more than 8 parts"),
        ("\n[" + ".".join("b" * (MAX_KEY_PARTS + 1)) + "]", 2, "dotted key of more than 8 parts"),
        ("a = " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), 1, "nested more than 16 deep"),
        ("a = " + "{a=" * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), 1, "nested more than 16 deep"),
        ("a = [\n" + "1" * (MAX_SCALAR + 1) + "]", 2, "number of more than 128 characters"),
        ("a = [" + "1, " * MAX_ITEMS + "\n1]", 2, "a list of more than 4096 items"),
        ("[[a]]\n" * (MAX_ITEMS + 1), MAX_ITEMS + 1, "a list of more than 4096 items"),
        ("a = 0x" + "f" * 5000, 1, "number of more than 128 characters"),
    ],
)
def test_limits_name_the_line(text, line, what):
    with pytest.raises(TooMuch, match=what) as caught:
        positions(text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    "piece",
    ["a.", "[", "9", "\\", "'", '"', '"" ', "[[a]]\n", "[a]\n", "1,", "{", "#", "\n", "a = 1\n", "[a.b.c.d.e.f.g.h]\n",
     "a.b = {c.d = [1]}\n"],
)
@pytest.mark.parametrize("start", ["", "a = ", 'a = "', "a = \"\"\"", "a = ["])
def test_work_grows_no_faster_than_the_text(start, piece):
    """Counted in calls, since seconds vary."""
    single, double = (calls_of(start + piece * count) for count in (300, 600))
    assert double <= 2.1 * single + 200


def calls_of(text):
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        positions(text)
    except TooMuch:
        pass
    finally:
        sys.setprofile(None)
    return calls


def test_keys_behind_strings_of_several_lines_have_lines() -> None:
    """Python 3.11.2, which Debian 12 has, lost what came behind them: its re is wrong about possessive groups."""
    assert positions('a = ["""\n"x""", 0]\nb = 1') == {("a",): 1, ("a", 0): 1, ("a", 1): 2, ("b",): 3}
    assert positions("a = '''\nx '' y'''''\nb = 1 # 2\nc = \"x\\\"\"\nd = 3") == {
        ("a",): 1, ("b",): 3, ("c",): 4, ("d",): 5
    }
    for opened, rest in (('"""', 'x"'), ('"""', '\\"'), ("'''", "x'"), ('"', "\\n")):
        assert positions("a = " + opened + rest * 50_000) == {("a",): 1}
