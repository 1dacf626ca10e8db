from __future__ import annotations

import copy
import json
import re
import sys
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blockexpand.errors import CheckpointError
from blockexpand.formats.json_object import (
    REMOVE,
    JsonEdit,
    JsonValue,
    edit_json_object,
    parse_json_object,
)


def edit(text: str, *edits: tuple[str, JsonValue]) -> str:
    """Apply edits given as dotted paths."""
    listed = [JsonEdit(path=tuple(path.split(".")), value=value) for path, value in edits]
    return edit_json_object(text.encode(), listed).decode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "config.json: line 1 column 1: no JSON"),
        (b"\xef\xbb\xbf{}", "config.json: line 1 column 1: a byte order mark"),
        (b"\xff\xfe{\0}\0", "config.json: line 1 column 1: no UTF-8"),
        (b'{"a": 1,\n "b": "\xff"}', "config.json: line 2 column 8: no UTF-8"),
        (b'{\n  // layers\n  "a": 1}', "config.json: line 2 column 3: a comment"),
        (b'{"a": 1} # layers', "config.json: line 1 column 10: a comment"),
        (b'{\n  "a": /* four */ 4}', "config.json: line 2 column 8: a comment"),
        (b'{"a": 1,}', "config.json: line 1 column [89]: no JSON"),
        (b"{'a': 1}", "config.json: line 1 column 2: no JSON"),
        (b'{"a": "tab\there"}', "config.json: line 1 column 11: no JSON"),
        (b'{"a": 1}\n{}', "config.json: line 2 column 1: no JSON"),
        (b'{"a": 1', "config.json: line 1 column 8: no JSON"),
        (b'{"b": {"a": 1, "a": 1}}', "config.json: the key 'a' occurs twice"),
        (b'{"\\n": 1, "\\u000a": 1}', r"config.json: the key '\\n' occurs twice"),
        (b'{"%s": 1, "%s": 1}' % (b"k" * 300, b"k" * 300), "the key 'k{200}'… occurs twice"),
        (b"[1, 2]", r"config.json: expected a JSON object, found \[1, 2\]"),
        (b'"a"', "config.json: expected a JSON object, found 'a'"),
        (b'{"a": "\\ud800"}', "config.json: half a surrogate pair"),
        (b'{"a": %s}' % (b"[" * 127 + b"]" * 127), "config.json: brackets nest deeper than 127"),
        (b"[" * 10**6, "config.json: brackets nest deeper than 127"),
        (b'{"a": 1%s}' % (b"0" * 5000), "config.json: a number of 5001 digits"),
    ],
)
def test_refuse_what_is_no_strict_json(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        parse_json_object(data, "config.json")
    assert str(caught.value).isprintable()  # one line


def test_parse_what_checkpoints_hold() -> None:
    data = (
        '{"a": [1e-05, -Infinity, NaN, null], "ü": {"\\ud83d\\ude00": "[{"}, "z": 9007199254740993}'
    )
    document = parse_json_object(data.encode(), "config.json")
    assert document["a"][:2] == [1e-05, float("-inf")]
    assert document["a"][2] != document["a"][2]
    assert document["ü"] == {"😀": "[{"}
    assert document["z"] == 2**53 + 1
    nested = json.loads("[" * 126 + "]" * 126)
    assert parse_json_object(json.dumps({"a": nested}).encode(), "config.json") == {"a": nested}


def test_deep_nesting_does_not_reach_the_c_stack() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**7)
    try:
        with pytest.raises(CheckpointError, match="nest"):
            parse_json_object(b'{"a":' * 10**6, "config.json")
    finally:
        sys.setrecursionlimit(limit)


def test_parse_an_index_of_a_million_entries() -> None:
    weight_map = {f"model.layers.{i}.w": "model-00001-of-00002.safetensors" for i in range(10**6)}
    data = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    started = time.process_time()
    document = parse_json_object(data, "index.json")
    assert time.process_time() - started < 10  # about 1.5 s
    assert document["weight_map"] == weight_map


WRITTEN_BY_HAND = """\
{ "architectures" : ["LlamaForCausalLM"],
  "eps": 1E-5,\t"big": 1.0e+02, "infinite": Infinity,
  "name": "\\u00e9\\/ü",
  "layer_types": ["full","sliding"],

  "text_config": {
      "num_hidden_layers": 2, "empty": {}
  },
  "last": null   }

"""


@pytest.mark.parametrize(
    ("edits", "old", "new"),
    [
        ([("text_config.num_hidden_layers", 36)], '_layers": 2,', '_layers": 36,'),
        ([("layer_types", ["full"] * 3)], '["full","sliding"]', '["full","full","full"]'),
        ([("eps", 0.5)], "1E-5", "0.5"),
        ([("eps", 1e-05), ("big", 100.0), ("infinite", float("inf"))], "", ""),
        ([("name", "é/ü"), ("text_config.empty", {})], "", ""),
        ([("big", 100)], "1.0e+02", "100"),
        ([("last", REMOVE)], ',\n  "last": null', ""),
        ([("eps", REMOVE)], '"eps": 1E-5,\t', ""),
        ([("architectures", REMOVE)], '"architectures" : ["LlamaForCausalLM"],\n  ', ""),
        ([("text_config.empty", REMOVE)], ', "empty": {}', ""),
        ([("absent", REMOVE), ("text_config.absent", REMOVE), ("a.b", REMOVE)], "", ""),
        ([("new", "ü")], '"last": null', '"last": null,\n  "new": "ü"'),
        ([("last", [1, {"a": 2}])], "null", '[1, {"a" : 2}]'),
    ],
)
def test_edits_leave_all_other_bytes(
    edits: list[tuple[str, JsonValue]], old: str, new: str
) -> None:
    assert WRITTEN_BY_HAND.count(old) == 1 or not old
    assert edit(WRITTEN_BY_HAND, *edits) == WRITTEN_BY_HAND.replace(old, new)


def test_missing_objects_on_the_path_are_made() -> None:
    assert edit('{"a": 1}', ("b.c.d", 2)) == '{"a": 1, "b": {"c": {"d": 2}}}'
    edits = [JsonEdit(path=("b", "c"), value=1)]
    assert edit_json_object(b'{"a": 1, "z": 2}', edits) == b'{"a": 1, "z": 2, "b": {"c": 1}}'
    assert edit("{}", ("a", [1, 2])) == '{"a": [1, 2]}'
    assert edit("{ }\n", ("a", 1)) == '{\n  "a": 1\n}\n'


def test_line_breaks_of_the_file_are_kept() -> None:
    text = '{\r\n\t"a": [\r\n\t\t1\r\n\t],\r\n\t"b": {}\r\n}\r\n'
    expected = '{\r\n\t"a": [\r\n\t\t1,\r\n\t\t2\r\n\t],\r\n\t"b": {\r\n\t\t"c": 1\r\n\t}\r\n}\r\n'
    assert edit(text, ("a", [1, 2]), ("b.c", 1)) == expected


def test_ascii_files_stay_ascii() -> None:
    assert edit('{"a": "\\u00e9"}', ("b", "ü")) == '{"a": "\\u00e9", "b": "\\u00fc"}'
    assert edit('{"a": "é"}', ("b", "ü")) == '{"a": "é", "b": "ü"}'


def test_a_path_through_a_number_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"'a\.b\.c': expected 'a\.b' to be an object, found 3"
    ):
        edit('{"a": {"b": 3}}', ("a.b.c", 1))


def test_edits_give_what_transformers_writes() -> None:
    transformers = pytest.importorskip("transformers", "4.56")
    Qwen3Config = transformers.Qwen3Config

    def render(layers: int) -> str:
        config = Qwen3Config(
            num_hidden_layers=layers,
            layer_types=["full_attention"] * layers,
            rms_norm_eps=1e-5,
            architectures=["Qwen3ForCausalLM"],
        )
        return config.to_json_string()

    edits = [("num_hidden_layers", 6), ("layer_types", ["full_attention"] * 6)]
    if "max_window_layers" in render(4):
        edits.append(("max_window_layers", json.loads(render(6))["max_window_layers"]))
    assert edit(render(4), *edits) == render(6)


# The oracle: Python's encoder in the same style, given the document that was edited as a dict.
# Numbers in odd spellings travel through it as strings, and are put in afterwards.
keys = st.sampled_from(["a", "b", "c", 'd"\\', "é", "", "\n", "[{", "num_hidden_layers"])
odd_numbers = st.sampled_from(
    ["@1E-5@", "@1e-05@", "@-0.0@", "@1.50@", "@NaN@", "@10000000000000@"]
)
scalars = st.none() | st.booleans() | st.integers() | st.sampled_from(["", "x y", "\\", "ü", ",:{"])
values = st.recursive(
    scalars | odd_numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(keys, values, min_size=1, max_size=5)
styles = st.sampled_from(
    [
        {"indent": 2},
        {"indent": 4},
        {"indent": 1, "separators": (",", " : ")},
        {"indent": "\t"},
        {"indent": ""},
        {"indent": None},
        {"indent": None, "separators": (",", ":")},
    ]
)
new_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "x", '"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=2),
    max_leaves=5,
)


def render(document: Any, style: dict[str, Any], ascii_only: bool) -> str:
    text = json.dumps(document, ensure_ascii=ascii_only, **style)
    return re.sub(r'"@([^"@]*)@"', r"\1", text)


@settings(deadline=None)
@given(
    document=documents,
    style=styles,
    ascii_only=st.booleans(),
    around=st.sampled_from([("", ""), ("", "\n"), (" \n", "\n\n ")]),
    data=st.data(),
)
def test_edits_equal_those_of_a_dict(
    document: dict[str, Any],
    style: dict[str, Any],
    ascii_only: bool,
    around: tuple[str, str],
    data: st.DataObject,
) -> None:
    text = around[0] + render(document, style, ascii_only) + around[1]
    expected = copy.deepcopy(document)
    edits = []
    for _ in range(data.draw(st.integers(0, 4))):
        members, path = expected, []
        while True:
            key = data.draw(st.sampled_from([*members, "new"]))
            path.append(key)
            if not isinstance(members.get(key), dict) or not data.draw(st.booleans()):
                break
            members = members[key]
        if data.draw(st.integers(0, 3)) == 0:
            if len(expected) == 1 and members is expected:
                continue  # an empty document has no style that could be kept
            edits.append(JsonEdit(path=tuple(path), value=REMOVE))
            members.pop(key, None)
        else:
            value = data.draw(new_values)
            edits.append(JsonEdit(path=tuple(path), value=value))
            members[key] = value
    edited = edit_json_object(text.encode(), edits).decode()
    assert edited == around[0] + render(expected, style, text.isascii()) + around[1]


spaces = st.text(" \t\r\n", max_size=3)


@settings(deadline=None)
@given(
    document=documents.filter(lambda document: len(document) > 1),
    data=st.data(),
    value=new_values,
)
@example(document={"a": 1, "b": {}}, data=None, value=[1])  # type: ignore[arg-type]
def test_odd_white_space_outside_the_value_stays(
    document: dict[str, Any], data: st.DataObject | None, value: Any
) -> None:
    def odd(item: Any) -> str:
        def space() -> str:
            return data.draw(spaces) if data else " \n"

        if isinstance(item, dict):
            parts = [f"{json.dumps(k)}{space()}:{space()}{odd(v)}" for k, v in item.items()]
            return "{" + space() + f"{space()},{space()}".join(parts) + space() + "}"
        if isinstance(item, list):
            return "[" + space() + f"{space()},{space()}".join(map(odd, item)) + space() + "]"
        return re.sub(r'"@([^"@]*)@"', r"\1", json.dumps(item))

    key = data.draw(st.sampled_from(list(document))) if data else "a"
    marked = odd({**document, key: "MARK"})
    before, after = marked.split('"MARK"')
    text = before + odd(document[key]) + after
    edited = edit(text, (json.loads(json.dumps(key)), value)) if "." not in key else text
    assert edited.startswith(before)
    assert edited.endswith(after)
    found = edited[len(before) : len(edited) - len(after)]
    assert json.loads(found) == value


def test_a_million_members_are_edited_in_seconds() -> None:
    members = ",\n".join(f'  "key{i}": {i}' for i in range(10**6))
    data = f'{{\n  "num_hidden_layers": 2,\n{members}\n}}\n'.encode()
    start = time.process_time()
    edited = edit_json_object(
        data,
        [
            JsonEdit(path=("num_hidden_layers",), value=3),
            JsonEdit(path=("nowhere",), value=REMOVE),
            JsonEdit(path=("dtype",), value="bfloat16"),
            JsonEdit(path=("key7",), value=8),
        ],
    )
    assert time.process_time() - start < 5
    expected = json.loads(data) | {"num_hidden_layers": 3, "dtype": "bfloat16", "key7": 8}
    assert json.loads(edited) == expected
