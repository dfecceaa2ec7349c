"""YAML of anybody's: what is read of it, and what is refused before it costs anything."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dfer.yaml_text import MAX_BYTES, YamlProblem, parse, parse_value

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)))
def test_plain_values_come_back(value: object) -> None:
    assert parse(yaml.safe_dump(value).encode()) == value


def test_a_text_that_is_read_again_gives_values_of_its_own() -> None:
    first = parse(b"a: {b: [1]}")
    first["a"]["b"].append(2)
    assert parse(b"a: {b: [1]}") == {"a": {"b": [1]}}


def test_dates_are_text() -> None:
    assert parse(b"a: 2026-02-30\nb: 2026-02-03") == {"a": "2026-02-30", "b": "2026-02-03"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a: &x [1]\nb: *x", r"aliases \(\*name\) are not read"),
        (b"a: &x [*x]", "aliases"),
        (b"!!python/object/apply:os.system [id]", r"tags \(tag:yaml.org,2002:python/object/apply:os.system\) are not"),
        (b"a: !!int ''", "tags"),
        (b"a: !!timestamp x", "tags"),
        (b"[" * 33, "nested deeper than 32"),
        (b"- " * 33, "nested deeper than 32"),
        (b"a: 1\nb: 2\na: 3", "'a' stands there twice"),
        (b"a: 9223372036854775808", "more than 64 bits"),
        (b"a: " + b"9" * 5000, "Exceeds the limit"),
        (b"a: 0b_", "'0b_' is not read as it is written"),
        (b"a: 010", "'010' is not read as it is written: write it in decimal digits without leading zeros, `_` or `:`"),
        (b"a: -010", "'-010' is not read"),
        (b"a: 0x10", "'0x10' is not read"),
        (b"a: 1_000", "'1_000' is not read"),
        (b"a: 1:30", "'1:30' is not read"),
        (b"a: 1:30.5", "'1:30.5' is not read as it is written: write it without `_` or `:`"),
        (b"a: 1_0.5", "'1_0.5' is not read"),
        (b"a: " + b"1:" * 30_000 + b"1", r"'(1:){20}\.\.\.' is not read"),
        (b"a: yes", "'yes' is not read as it is written: write it as true or false, or in quotes where it is text"),
        (b"on: 1", "'on' is not read"),
        (b"a: [Off]", "'Off' is not read"),
        (b"a: NO", "'NO' is not read"),
        (b"a: ~", "'~' is not read as it is written: write it as null, or in quotes where it is text"),
        (b"a: /data/lr #1", "'/data/lr' would end before ` #`: put the text in quotes, or a blank behind the #"),
        (b"a: [x #1\n]", "'x' would end before"),
        (b"? [1]\n: 2", "unhashable"),
        (b"a: =", "could not determine a constructor"),
        (b"a: [", "expected the node content"),
        (b"a: 1\n---\nb: 2", "expected a single document"),
        (b"\xff", "can't decode byte"),
        (b"a: \0", "special characters are not allowed"),
        (b" " * (MAX_BYTES + 1), "65,537 bytes, more than 65,536"),
    ],
)
def test_what_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(YamlProblem, match=says) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"089", "089"),
        (b"'010'", "010"),
        (b"'/data/lr #1'", "/data/lr #1"),
        (b"a#1", "a#1"),
        (b"-1", -1),
        (b"+1", 1),
        (b"0", 0),
        (b"True", True),
        (b"NULL", None),
        (b"", None),
        (b"1.0e-05", 1e-5),
        (b"1.", 1.0),
    ],
)
def test_what_reads_as_it_is_written_is_read(text: bytes, value: object) -> None:
    assert parse(text) == parse_value(text) == value


def test_comments_are_left_out_of_files_alone() -> None:
    for text in (b"1 # x", b"[1, 2] #x", b"{a: 1}  # x", b"a: 1 # y", b"x # y", b"# x", b"'x' #y"):
        parse(text)
        with pytest.raises(YamlProblem, match="is a comment in YAML and would be left out"):
            parse_value(text)


def test_a_few_lines_that_unfold_into_gigabytes_cost_nothing() -> None:
    laughs = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (97 + n, 97 + n, b",".join([b"*%c" % (96 + n)] * 9)) for n in range(1, 12)
    )
    start = time.monotonic()
    with pytest.raises(YamlProblem, match="aliases"):
        parse(laughs)
    assert time.monotonic() - start < 5
