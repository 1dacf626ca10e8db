"""Which dtype a tensor of the output has, and what the config says of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from checkpoints import mistral_tensors, write_checkpoint

from blockexpand.checkpoints.checkpoint import Checkpoint, open_checkpoint
from blockexpand.errors import RecipeError
from blockexpand.formats.elements import encode_element
from blockexpand.formats.json_object import edit_json_object
from blockexpand.formats.tensor_spec import make_tensor_spec
from blockexpand.models.decoder import find_decoder
from blockexpand.planning.dtypes import DtypePolicy, make_dtype_policy
from blockexpand.planning.origins import Convert, Copy, Extent

EXTENT = Extent(file="a", offset=8, nbytes=64)


def open_mistral(folder: Path, main: str, /, **config: Any) -> Checkpoint:
    return open_checkpoint(write_checkpoint(folder, [mistral_tensors(dtype=main)], config))


def policy_for(checkpoint: Checkpoint, dtype: str) -> DtypePolicy:
    decoder = find_decoder(checkpoint.config, checkpoint.specs)
    return make_dtype_policy(checkpoint, dtype, decoder)


# Most of the source, --dtype, then of each tensor's dtype what it becomes.
@pytest.mark.parametrize(
    ("main", "dtype", "becomes"),
    [
        ("F32", "bfloat16", {"F64": "BF16", "F32": "BF16", "F16": "BF16", "BF16": "BF16"}),
        ("F16", "bfloat16", {"F64": "BF16", "F32": "BF16", "F16": "BF16", "BF16": "BF16"}),
        # The source is bfloat16 already: what is wider is so on purpose.
        ("BF16", "bfloat16", {"F64": "F64", "F32": "F32", "F16": "BF16", "BF16": "BF16"}),
        ("BF16", "float16", {"F64": "F16", "F32": "F16", "F16": "F16", "BF16": "F16"}),
        ("F16", "float16", {"F64": "F64", "F32": "F32", "F16": "F16", "BF16": "F16"}),
        ("BF16", "float32", {"F64": "F32", "F32": "F32", "F16": "F32", "BF16": "F32"}),
        ("F32", "float32", {"F64": "F64", "F32": "F32", "F16": "F32", "BF16": "F32"}),
        ("F32", "source", {"F64": "F64", "F32": "F32", "F16": "F16", "BF16": "BF16"}),
    ],
)
def test_what_each_tensor_becomes(
    main: str, dtype: str, becomes: dict[str, str], tmp_path: Path
) -> None:
    policy = policy_for(open_mistral(tmp_path, main), dtype)
    for before, after in becomes.items():
        spec, origin = policy.plan("x", make_tensor_spec(before, (2, 3)), EXTENT)
        assert spec == make_tensor_spec(after, (2, 3))
        if before == after:
            assert origin == Copy(*EXTENT)
        else:
            assert origin == Convert(extent=EXTENT, from_dtype=before, to_dtype=after)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "source"])
@pytest.mark.parametrize("before", ["I64", "I32", "U8", "BOOL", "F8_E4M3", "C64"])
def test_what_is_no_float_stays(before: str, dtype: str, tmp_path: Path) -> None:
    spec = make_tensor_spec(before, (2, 3))
    policy = policy_for(open_mistral(tmp_path, "F32"), dtype)
    assert policy.plan("x", spec, EXTENT) == (spec, Copy(*EXTENT))


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_config_is_kept_true_in_the_spelling_it_has(key: str, tmp_path: Path) -> None:
    checkpoint = open_mistral(tmp_path, "F32", **{key: "float32"})
    for dtype, stated in (
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("float32", "float32"),
        ("source", "float32"),
    ):
        edits = policy_for(checkpoint, dtype).config_edits(checkpoint.config)
        edited = edit_json_object(checkpoint.config_bytes, edits)
        before = f'"{key}": "float32"'.encode()
        assert checkpoint.config_bytes.count(before) == 1
        assert edited == checkpoint.config_bytes.replace(before, f'"{key}": "{stated}"'.encode())


def test_fields_of_sub_models_are_kept_true_and_others_are_left_alone(tmp_path: Path) -> None:
    config = {
        "torch_dtype": "float32",
        "text_config": {"dtype": "float32", "deeper_config": {"torch_dtype": "float16"}},
        "vision_config": {"torch_dtype": "bfloat16"},
        "audio_config": {"dtype": "auto"},
        "other": {"dtype": "float32"},
        "dtype": None,
    }
    checkpoint = open_mistral(tmp_path, "F32", **config)
    edits = policy_for(checkpoint, "bfloat16").config_edits(checkpoint.config)
    edited = json.loads(edit_json_object(checkpoint.config_bytes, edits))
    assert {key: edited[key] for key in config} == config | {
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "deeper_config": {"torch_dtype": "bfloat16"}},
    }


@pytest.mark.parametrize("value", [["float32"], {"a": 1}, 7, None, "int8", "torch.float32"])
def test_a_field_that_is_no_dtype_is_left_alone(value: object, tmp_path: Path) -> None:
    checkpoint = open_mistral(tmp_path, "F32", torch_dtype=value)
    assert policy_for(checkpoint, "bfloat16").config_edits(checkpoint.config) == ()


def test_a_config_without_a_dtype_gets_none(tmp_path: Path) -> None:
    checkpoint = open_mistral(tmp_path, "F32")
    assert policy_for(checkpoint, "bfloat16").config_edits(checkpoint.config) == ()


def test_the_output_is_called_after_most_of_its_bytes(tmp_path: Path) -> None:
    checkpoint = open_mistral(tmp_path, "F16")
    assert policy_for(checkpoint, "source").output_dtype == "float16"
    assert policy_for(checkpoint, "float32").output_dtype == "float32"


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    checkpoint = open_mistral(tmp_path, "F16")
    for dtype in ("int8", "float64", "BF16", ""):
        with pytest.raises(RecipeError, match="expected one of bfloat16, float16, float32, source"):
            policy_for(checkpoint, dtype)


@pytest.mark.parametrize(("dtype", "code"), [("F64", "<d"), ("F32", "<f"), ("F16", "<e")])
def test_elements_are_little_endian(dtype: str, code: str) -> None:
    for value in (0.0, 1.0, -1.0):
        assert encode_element(dtype, value) == struct.pack(code, value)


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    assert encode_element("BF16", 1.0) == b"\x80\x3f"
    assert encode_element("BF16", -1.0) == b"\x80\xbf"
    assert encode_element("BF16", 0.0) == b"\0\0"
    with pytest.raises(RecipeError, match="dtype I64 cannot be set to 1"):
        encode_element("I64", 1.0)
