from __future__ import annotations

import pytest

from blockexpand.formats.serde_json import (
    JsonError,
    OtherNumber,
    decode_as_serde,
    refuse_nesting_and_half_surrogates,
)
from blockexpand.messages import show


def test_objects_keep_duplicates_and_numbers_their_kind() -> None:
    text = '{"a": [0, 18446744073709551615, 18446744073709551616, -1, -0, 1.0, 1E2], "a": {}}'
    (first, numbers), second = decode_as_serde(text)
    assert (first, second) == ("a", ("a", ()))
    assert numbers == [0, 2**64 - 1, "18446744073709551616", "-1", "-0", "1.0", "1E2"]
    assert [type(number) for number in numbers] == [int] * 2 + [OtherNumber] * 5


@pytest.mark.parametrize("text", ["1e309", "-1e309", "1" + "0" * 309, "NaN", "-Infinity", "01", ""])
def test_numbers_that_serde_refuses(text: str) -> None:
    with pytest.raises(JsonError):
        decode_as_serde(f"[{text}, 1]")


def test_nesting_is_counted_outside_strings() -> None:
    refuse_nesting_and_half_surrogates("[" * 127 + "]" * 127)
    refuse_nesting_and_half_surrogates("[" + "[],{}," * 1000 + "1]")
    refuse_nesting_and_half_surrogates('["\\\\\\"' + "[" * 200 + '", "\\\\", "]"]')
    refuse_nesting_and_half_surrogates('"' + "[" * 200)
    with pytest.raises(JsonError, match="deeper than 127"):
        refuse_nesting_and_half_surrogates('["[\\\\",' + '{"":' * 127 + "1" + "}" * 127 + "]")


def test_values_are_shown_on_one_short_line() -> None:
    for value, expected in [
        ("a\n\0\u2028é", r"'a\n\x00\u2028é'"),
        ("it's", '"it\'s"'),
        ("n" * 201, f"'{'n' * 200}'…"),
        (None, "null"),
        (True, "true"),
        (OtherNumber("-0"), "-0"),
        (OtherNumber("9" * 300), "9" * 200 + "…"),
        ([1, "a", [2], (), {}], "[1, 'a', a list, an object, an object]"),
        ([0] * 17, "a list of 17 values"),
    ]:
        assert show(value) == expected
