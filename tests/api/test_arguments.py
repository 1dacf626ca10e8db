"""Arguments from Python are checked as those of the command line are, before anything is done."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from checkpoints import snapshot

import blockexpand

COUNT = "expected a whole number from 1, found "
POSITION = "expected end, interleaved, start, @FILE, or layers such as 7,15,23,31, found "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"new_layers": "4"}, f"new_layers: {COUNT}'4'"),
        ({"new_layers": 2.5}, f"new_layers: {COUNT}2.5"),
        ({"new_layers": True}, f"new_layers: {COUNT}True"),
        ({"new_layers": 0}, f"new_layers: {COUNT}0"),
        ({"new_layers": -1}, f"new_layers: {COUNT}-1"),
        ({"new_layers": [4]}, f"new_layers: {COUNT}[4]"),
        ({"new_layers": None}, "position 'end' needs the number of new layers too"),
        ({"position": "interleavd"}, f"position: {POSITION}'interleavd'"),
        ({"position": None}, f"position: {POSITION}None"),
        ({"position": 3}, f"position: {POSITION}3"),
        ({"position": [1.0]}, f"position: {POSITION}[1.0]"),
        ({"position": [True]}, f"position: {POSITION}[true]"),
        ({"position": ["1"]}, f"position: {POSITION}['1']"),
        ({"position": (-1,)}, f"position: {POSITION}tuple"),
        ({"position": []}, f"position: {POSITION}[]"),
        ({"dtype": "fp16"}, "dtype: expected bfloat16, float16, float32 or source, found 'fp16'"),
        ({"max_shard_size": 2.5}, "max_shard_size: expected a size such as 5GB, found 2.5"),
        ({"max_shard_size": True}, "max_shard_size: expected a size such as 5GB, found True"),
        ({"reflink": "allways"}, "reflink: expected auto, always or never, found 'allways'"),
        ({"hardlink": "no"}, "hardlink: expected True or False, found 'no'"),
        ({"overwrite": 1}, "overwrite: expected True or False, found 1"),
        ({"verify_after": "logit"}, "verify_after: expected tensors or logits, found 'logit'"),
        ({"verify_after": True}, "verify_after: expected tensors or logits, found True"),
        ({"revision": ""}, "revision: expected a text that is not empty, found ''"),
        ({"token": True}, "token: expected a text that is not empty, found True"),
        ({"cache_dir": 7}, "cache_dir: expected a path or a name, as text or as a Path, found 7"),
        ({"private": True}, "private: has no effect without push_to_hub"),
        ({"create_pr": True}, "create_pr: has no effect without push_to_hub"),
        ({"commit_message": "x"}, "commit_message: has no effect without push_to_hub"),
        ({"no_proof": True}, "no_proof: has no effect without family"),
        ({"layers": "0-3"}, "layers: says every layer of the output"),
        ({"stream": True}, "stream: for a repository of the Hub alone"),
        ({"family": "lama"}, "family: lama is no family of the table"),
        ({"executor": "process:4"}, "executor: expected a concurrent.futures.Executor, found "),
        ({"progress": print}, "progress: expected a blockexpand.Progress, found "),
        ({"src": ""}, "src: expected a path or a name, as text or as a Path, found ''"),
        ({"out": b"out"}, "out: expected a path or a name, as text or as a Path, found bytes"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_an_argument_of_the_wrong_kind_is_one_line_and_leaves_nothing(
    arguments: dict[str, Any], message: str, tiny_mistral: Path, tmp_path: Path
) -> None:
    options = {"src": tiny_mistral, "out": tmp_path / "out", "new_layers": 1} | arguments
    with pytest.raises(blockexpand.BlockExpandError) as caught:
        blockexpand.expand(**options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == {}


def test_the_other_functions_check_too(tiny_mistral: Path, tmp_path: Path) -> None:
    calls: list[tuple[Any, str]] = [
        (lambda: blockexpand.verify(tiny_mistral, tmp_path, logits="yes"), "logits"),  # type: ignore[arg-type]
        (lambda: blockexpand.diff(tiny_mistral, None), "other"),  # type: ignore[arg-type]
        (lambda: blockexpand.merge(3, tmp_path / "out"), "recipe"),  # type: ignore[arg-type]
        (lambda: blockexpand.merge("r.yml", tmp_path / "out", src=3), "src"),  # type: ignore[arg-type]
        (lambda: blockexpand.expand_batch("jobs.yaml", parallel=0), "parallel"),
    ]
    for call, name in calls:
        with pytest.raises(blockexpand.ArgumentError) as caught:
            call()
        assert caught.value.argument == name


def test_integers_of_numpy_are_integers(tiny_mistral: Path, tmp_path: Path) -> None:
    import numpy as np

    layers: Any = np.array([0, 2])
    result = blockexpand.expand(tiny_mistral, tmp_path / "out", position=list(layers))
    assert result.plan.new_layers == (1, 4)
    count: Any = np.int64(2)
    assert len(blockexpand.expand(tiny_mistral, tmp_path / "two", new_layers=count).plan.files) > 1


def test_an_error_survives_the_way_between_processes() -> None:
    error = blockexpand.ArgumentError("new_layers", "expected 1")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.argument) == ("new_layers: expected 1", "new_layers")
