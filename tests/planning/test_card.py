"""README.md and block_expansion.json of an output, as the Hub's own client reads them."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import mistral_tensors, write_checkpoint
from faults import make_source

import blockexpand
from blockexpand.checkpoints.checkpoint import open_checkpoint
from blockexpand.checkpoints.sources import ModelRef
from blockexpand.cli.app import main
from blockexpand.models.layer_map import LayerEntry
from blockexpand.planning.card import add_card, add_proof, without_proof
from blockexpand.planning.layer_text import describe_neutral, layer_runs
from blockexpand.planning.mergekit.rendering import render_recipe
from blockexpand.planning.plan import Plan, make_plan
from blockexpand.planning.recipe import Recipe

# The recipe that this tool replaces, for 4 blocks at the end of 32 layers.
SEED_RECIPE = """\
slices:
- sources:
  - model: openchat/openchat-3.5-0106
    layer_range: [0, 32]
- sources:
  - model: openchat/openchat-3.5-0106
    layer_range: [31, 32]
    parameters: &zero
      scale:
      - filter: o_proj
        value: 0.0
      - filter: down_proj
        value: 0.0
      - value: 1.0
- sources:
  - {model: openchat/openchat-3.5-0106, layer_range: [31, 32], parameters: *zero}
- sources:
  - {model: openchat/openchat-3.5-0106, layer_range: [31, 32], parameters: *zero}
- sources:
  - {model: openchat/openchat-3.5-0106, layer_range: [31, 32], parameters: *zero}
merge_method: passthrough
dtype: bfloat16
"""
COMMIT = "0123456789abcdef" * 2 + "01234567"
OPENCHAT = ModelRef(
    model="openchat/openchat-3.5-0106",
    repo="openchat/openchat-3.5-0106",
    revision="main",
    commit=COMMIT,
)


def make_card(
    folder: Path,
    card: bytes | None = None,
    *,
    layers: int = 4,
    source: ModelRef | None = None,
    command: str = "the command",
    **recipe: Any,
) -> tuple[str, dict[str, Any]]:
    """Return the card and the manifest of a made-up Mistral's expansion."""
    write_checkpoint(folder, [mistral_tensors(layers=layers)])
    if card is not None:
        (folder / "README.md").write_bytes(card)
    plan = make_plan(open_checkpoint(folder), Recipe(**({"new_layers": 4} | recipe)))
    plan = add_card(plan, source or ModelRef(model="local/model"), command)
    documents = {document.name: document.data for document in plan.documents}
    return documents["README.md"].decode(), json.loads(documents["block_expansion.json"])


def front_matter(card: str) -> dict[str, Any]:
    """Return what the Hub's client reads of a card; it raises for what the Hub would refuse."""
    from huggingface_hub import ModelCard

    return ModelCard(card).data.to_dict()


def yaml_block(card: str) -> Any:
    import yaml

    return yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])


def spell_filters(recipe: Any) -> Any:
    """Return a recipe with filters by their last part: mergekit looks for them inside of names."""
    for slice_ in recipe["slices"]:
        for source in slice_["sources"]:
            for rule in source.get("parameters", {}).get("scale", ()):
                if "filter" in rule:
                    rule["filter"] = rule["filter"].rpartition(".")[2]
    return recipe


def test_the_hub_reads_the_front_matter(tmp_path: Path) -> None:
    source_card = b"---\nlicense: apache-2.0\nlanguage:\n- en\n- no\nlibrary_name: x\n---\n# X\n"
    card, _ = make_card(tmp_path, source_card, source=OPENCHAT)
    assert front_matter(card) == {
        "base_model": "openchat/openchat-3.5-0106",
        "base_model_relation": "finetune",
        "language": ["en", "no"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["block-expansion", "llama-pro", "blockexpand"],
    }


def test_the_recipe_in_the_card_is_the_seed_models(tmp_path: Path) -> None:
    import yaml

    card, _ = make_card(tmp_path, layers=32, source=OPENCHAT)
    assert spell_filters(yaml_block(card)) == yaml.safe_load(SEED_RECIPE)


def test_the_recipe_of_interleaved_blocks(tmp_path: Path) -> None:
    card, _ = make_card(
        tmp_path, source=OPENCHAT, new_layers=2, position="interleaved", dtype="source"
    )
    recipe = yaml_block(card)
    ranges = [slice_["sources"][0]["layer_range"] for slice_ in recipe["slices"]]
    assert ranges == [[0, 2], [1, 2], [2, 4], [3, 4]]
    scaled = ["parameters" in slice_["sources"][0] for slice_ in recipe["slices"]]
    assert scaled == [False, True, False, True]
    assert "dtype" not in recipe


def test_the_card_tells_all_that_was_done(tmp_path: Path) -> None:
    card, _ = make_card(tmp_path, source=OPENCHAT, command="python -m blockexpand --src 'a b'")
    for text in (
        "# openchat-3.5-0106, expanded by 4 blocks",
        f"(https://huggingface.co/openchat/openchat-3.5-0106) (revision `main`, commit `{COMMIT}`)",
        "**The new blocks are untrained.** This is ",
        "4 layers became 8. Until it is trained, it computes exactly what its source computes: ",
        "▁▁▁▁████",
        "parameters: ",
        "blockexpand verify openchat/openchat-3.5-0106 . --logits",
        "[blockexpand](https://huggingface.co/models?other=blockexpand) ",
        "<details>\n<summary>The same model as a mergekit recipe</summary>",
        "```\npython -m blockexpand --src 'a b'\n```",
        "| 0–3 | 0–3 |\n| **4–7** | new: clone of layer 3 |",
        "- `self_attn.o_proj.weight` is zeroed\n- `mlp.down_proj.weight` is zeroed",
        "arxiv.org/abs/2401.02415",
        "(layers 4, 5, 6, 7)",
    ):
        assert text in card


def test_what_was_rounded_is_not_said_to_be_exact(tmp_path: Path) -> None:
    card, _ = make_card(tmp_path, dtype="float16")
    assert "it computes exactly what its source computes in float16: " in card


def test_a_local_source_has_the_base_model_that_the_user_names_and_never_its_own_base(
    tmp_path: Path,
) -> None:
    theirs = b"---\nbase_model: Qwen/Qwen3-8B-Base\nlicense: mit\n---\n"
    card, _ = make_card(tmp_path / "a", theirs)
    assert front_matter(card).keys().isdisjoint({"base_model", "base_model_relation"})
    assert "This is `model` with" in card
    named = ModelRef(model="/data/q3", base_model="Qwen/Qwen3-8B")
    card, manifest = make_card(tmp_path / "b", theirs, source=named)
    assert front_matter(card)["base_model"] == "Qwen/Qwen3-8B"
    assert front_matter(card)["base_model_relation"] == "finetune"
    assert "# Qwen3-8B, expanded by 4 blocks" in card
    assert manifest["source"] == {
        "model": "q3",
        "model_type": "mistral",
        "base_model": "Qwen/Qwen3-8B",
    }


COMMANDS = (
    "python -m blockexpand --src /scratch/jane/q3 --out /scratch/jane/out --new-layers 4",
    "python -m blockexpand --src=/scratch/jane/q3 --out=../jane/out --cache-dir /scratch/jane",
    "python -m blockexpand --src x --family /scratch/row.yaml --overwrite-anything ../jane/out",
    "python -m blockexpand --src x --family=~jane/scratch/row.yaml --executor dask://scratch-1:8786",
    "python -m blockexpand --src x --executor=dask://scratch-1:8786 --recipe=scratch/recipe.yml",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_path_of_the_machine_gets_out(command: str, tmp_path: Path) -> None:
    source = ModelRef(model="/scratch/jane/q3")
    card, manifest = make_card(tmp_path, source=source, command=command)
    for text in (card, json.dumps(manifest)):
        assert "scratch" not in text and "../" not in text and str(tmp_path) not in text
    assert manifest["command"].startswith("python -m blockexpand --src")


def test_no_path_of_the_machine_gets_out_of_any_command(tmp_path: Path) -> None:
    """What `apply` and `merge` make can be pushed as well."""
    base, trained = make_source(tmp_path / "scratch" / "base"), tmp_path / "trained"
    blockexpand.expand(base, trained, new_layers=1)
    blockexpand.extract(trained, tmp_path / "scratch" / "blocks", base=base)
    recipe = tmp_path / "scratch" / "recipe.yml"
    recipe.write_text(
        "merge_method: passthrough\ndtype: bfloat16\n"
        "slices:\n- sources: [{model: base, layer_range: [0, 2]}]\n"
    )
    words = ["apply", str(base), str(tmp_path / "scratch" / "blocks"), "--out", str(tmp_path / "a")]
    assert main([*words, "-q"]) == 0
    words = ["merge", str(recipe), "--src", str(base), "--out", str(tmp_path / "m")]
    assert main([*words, "-q"]) == 0
    for out in (tmp_path / "a", tmp_path / "m"):
        for name in ("README.md", "block_expansion.json"):
            assert "scratch" not in (out / name).read_text(), (out, name)
    assert blockexpand.verify(base, tmp_path / "a").ok
    assert blockexpand.verify(base, tmp_path / "m").ok


def test_an_instruction_of_the_card_runs_as_it_stands(
    tiny_mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(tiny_mistral, out, new_layers=1)
    card = (out / "README.md").read_text()
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    assert names["model"].config.num_hidden_layers == 5
    assert names["model"].dtype.itemsize == 2
    assert names["tokenizer"]("The").input_ids


def test_what_was_verified_is_said_in_the_card_and_changes_nothing_else(
    tiny_mistral: Path, tmp_path: Path
) -> None:
    plain, proven = tmp_path / "plain" / "out", tmp_path / "proven" / "out"
    blockexpand.expand(tiny_mistral, plain, new_layers=1, command="it")
    blockexpand.expand(tiny_mistral, proven, new_layers=1, command="it", verify_after="logits")
    said = (proven / "README.md").read_bytes()
    assert b"\n\n**Verified with blockexpand " in said
    assert b"; logits of 128 tokens bit-identical to those of the source in bfloat16.\n\n" in said
    assert without_proof(said) == (plain / "README.md").read_bytes() != said
    assert blockexpand.verify(tiny_mistral, proven).findings == ()
    assert sorted(path.name for path in proven.parent.iterdir()) == ["out"]
    # A second proof takes the place of the first.
    assert add_proof(said, tensors=1, nbytes=2).count(b"**Verified with") == 1


HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "https://evil.example/x",
    "``` \n# owned\n```",
    "a`b` **c** | d",
    "\n\n# owned\n\n</details>",
    "&lt;script&gt;",
)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_make_no_markup(name: str, tmp_path: Path) -> None:
    from markdown_it import MarkdownIt

    write_checkpoint(tmp_path, [mistral_tensors(layers=2)])
    plan = make_plan(open_checkpoint(tmp_path), Recipe(new_layers=1))
    plan = replace(plan, notes=(f"a note on {name}",))

    def parse(source: ModelRef, command: str, plan: Plan) -> tuple[list[str], list[str]]:
        documents = {d.name: d.data for d in add_card(plan, source, command).documents}
        body = documents["README.md"].decode().partition("\n---\n")[2]
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
        inline = [child for token in tokens for child in token.children or ()]
        html = [t.content for t in (*tokens, *inline) if t.type in ("html_block", "html_inline")]
        links = [str(t.attrs) for t in inline if t.type in ("link_open", "image")]
        return [*map(str.strip, html)], [*links, *(t.tag for t in tokens if t.tag == "h1")]

    plain = parse(ModelRef(model="model"), "it", replace(plan, notes=("a note",)))
    assert parse(ModelRef(model=f"x/{name}"), f"it --token '{name}'", plan) == plain


def test_a_recipe_is_written_the_same_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ["a/b", "~/m", "1e3", "ключ: ☃", "x" * 300, "two words\n", "'\"#", "", "-", "no"]
    for model in models:
        recipe = {"slices": [{"sources": [{"model": model, "layer_range": [0, 2]}]}]}
        fast = render_recipe(recipe)
        with monkeypatch.context() as patch:
            patch.delattr(yaml, "CSafeDumper")
            assert render_recipe(recipe) == fast


def test_the_manifest_is_what_trainers_read(tmp_path: Path) -> None:
    _, manifest = make_card(tmp_path, source=OPENCHAT, new_layers=2, position="interleaved")
    assert manifest.pop("fingerprint")
    assert manifest == {
        "schema_version": 2,
        "blockexpand": blockexpand.__version__,
        "source": {
            "model": "openchat/openchat-3.5-0106",
            "model_type": "mistral",
            "repo": "openchat/openchat-3.5-0106",
            "revision": "main",
            "commit": COMMIT,
        },
        "original_layers": 4,
        "layers": 6,
        "position": "interleaved",
        "layer_map": [0, 1, 1, 2, 3, 3],
        "new_layers": [2, 5],
        "layer_prefix": "model.layers.",
        "zeroed": ["self_attn.o_proj.weight", "mlp.down_proj.weight"],
        "set": {},
        "dtype": "bfloat16",
        "max_shard_nbytes": None,
        "block_nbytes": 4096,
        "command": "the command",
    }


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (b"---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
         {"license": "other", "license_name": "own", "license_link": "LICENSE"}),
        (b"---\r\nlicense: mit\r\nlanguage: no\r\n---\r\ntext",
         {"license": "mit", "language": "no"}),
        (b"\xef\xbb\xbf---\nlicense: 'mit'  # note\n---\n", {"license": "mit"}),
        (b"---\n# note\n\nlicense: >-\n  cc-by\n  4.0\n---", {"license": "cc-by 4.0"}),
        (b'---\n"license": mit\n---\n', {"license": "mit"}),
        (b"---\nlanguage: [en, fr]\n---\n", {"language": ["en", "fr"]}),
        (b"---\nlanguage:\n  - en\n  - fr\n---\n", {"language": ["en", "fr"]}),
        # A broken or a huge field hides no other one.
        (b"---\ntags: [broken\nlicense: mit\nmore: {\n---\n", {"license": "mit"}),
        (b"---\nmodel-index:\n" + b"- name: x\n" * 50_000 + b"license: mit\n---\n",
         {"license": "mit"}),
        # Nothing to carry over.
        (None, {}),
        (b"", {}),
        (b"---", {}),
        (b"# no front matter", {}),
        (b"---\nlicense: mit\n", {}),
        (b"text\n---\nlicense: mit\n---\n", {}),
        (b"---\nlicense:\nlanguage: null\n---\n", {}),
        (b"---\nlicense: {a: b}\nlanguage: [en, [fr]]\n---\n", {}),
        (b"---\nlicense: \"open\n---\n", {}),
        (b"\x80\x04\x95pickle\xff\xfe\0\0", {}),
        (b"---\n\xff\xfe: \xff\nlicense: \xff\n---\n", {"license": "\ufffd"}),
    ],
)  # fmt: skip
def test_what_is_carried_over_from_the_sources_card(
    card: bytes | None, expected: dict[str, Any], tmp_path: Path
) -> None:
    made, _ = make_card(tmp_path, card)
    found = front_matter(made)
    carried = ("license", "license_name", "license_link", "language")
    assert {key: found[key] for key in carried if key in found} == expected


def laughs(text: str) -> bytes:
    return f"---\n{text}\n---\n".encode()


def chain(member: str) -> str:
    """Return ten members that each name the one before nine times."""
    letters = "abcdefghijk"
    pairs = itertools.pairwise(letters)
    return "\n".join(member.format(b, ",".join([f"*{a}"] * 9)) for a, b in pairs)


NEXT = "\n    "
HOSTILE = {
    "apply": laughs("license: !!python/object/apply:os.system ['touch pwned']"),
    "new": laughs("license: !!python/object/new:os.system ['touch pwned']"),
    "name": laughs("language: !!python/name:os.system"),
    "module": laughs("base_model: !!python/module:antigravity"),
    "billion laughs": laughs(f"license: &a [x, x]\n{chain('{0}: &{0} [{1}]')}\nlanguage: *k"),
    "laughs in one field": laughs(f"license:\n  a: &a [x, x]\n{chain('  {0}: &{0} [{1}]')}"),
    "merges": laughs(f"license:\n  a: &a {{x: y}}\n{chain('  {0}: &{0}' + NEXT + '<<: [{1}]')}"),
    "itself": laughs("language: &a [en, *a]"),
    "deep": laughs("license: " + "[" * 100_000),
    "deep and short": laughs("license: " + "[" * 8000),
    "deep blocks": laughs("license:\n" + " " + "- " * 4000 + "x"),
    "huge": laughs("license: " + "x" * 900_000),
    "many": laughs("license: mit\n" * 70_000),
    "dates": laughs("license: 2024-99-99"),
    "number": laughs("license: " + "9" * 7000),
    "binary": bytes(range(256)) * 4000,
    "lines": b"---\n" + b"\n" * 1_000_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_does_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    start = time.process_time()
    made, _ = make_card(tmp_path / "source", HOSTILE[name])
    assert time.process_time() - start < 3
    found = front_matter(made)
    assert found["library_name"] == "transformers"
    assert len(made) < 10_000
    assert list((tmp_path / "cwd").iterdir()) == []


def test_paths_that_are_no_utf8_are_spelled_out(tmp_path: Path) -> None:
    import os

    path = os.fsdecode(b"caf\xe9")
    card, manifest = make_card(tmp_path, source=ModelRef(model=path), command=f"--src '{path}'")
    assert "--src 'caf\\udce9'" in card
    assert manifest["source"]["model"] == "caf\\udce9"


def test_layers_are_told_in_runs() -> None:
    def entries(text: str) -> tuple[LayerEntry, ...]:
        return tuple(LayerEntry(source=int(w.rstrip("*")), is_new="*" in w) for w in text.split())

    assert layer_runs(entries("0 1 2 2* 2* 3 3*")) == [
        (0, 2, 0, False),
        (3, 4, 2, True),
        (5, 5, 3, False),
        (6, 6, 3, True),
    ]
    assert layer_runs(entries("0* 0")) == [(0, 0, 0, True), (1, 1, 0, False)]
    assert layer_runs(()) == []


def test_experts_are_told_once() -> None:
    neutral = {f"mlp.experts.{e}.down_proj.weight": 0.0 for e in range(64)} | {"norm.weight": -1.0}
    assert describe_neutral(neutral) == [
        ("mlp.experts.{e}.down_proj.weight", 0.0),
        ("norm.weight", -1.0),
    ]
