"""Jobs files: what they mean, and every way to be wrong, each with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.api.job_options import OPTIONS, fill_template
from blockexpand.api.jobs_file import Job, open_jobs, parse_jobs
from blockexpand.errors import InputError, RecipeError


def parse(text: str) -> list[Job]:
    return list(parse_jobs(text.encode(), "jobs.yaml"))


def faults(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(RecipeError) as caught:
        parse_jobs(data, "jobs.yaml")
    line = str(caught.value)
    assert "\n" not in line
    return line.split("; jobs.yaml:")


def test_a_job_has_the_options_of_the_command_line() -> None:
    (job,) = parse("""\
jobs:
  - src: org/name
    out: out
    new-layers: 4
    position: interleaved
    dtype: float32
    max-shard-size: 5GB
    reflink: never
    hardlink: true
    revision: "1e10"
    check: yes
    verify: logits
    overwrite: true
    push-to-hub: user/{model}
    private: on
""")
    assert job == Job(
        where="jobs.yaml:2",
        src="org/name",
        out="out",
        new_layers=4,
        position="interleaved",
        dtype="float32",
        max_shard_size="5GB",
        reflink="never",
        hardlink=True,
        revision="1e10",
        check=True,
        verify="logits",
        overwrite=True,
        push_to_hub="user/{model}",
        private=True,
    )


def test_every_option_of_a_job_is_one_of_the_command() -> None:
    from blockexpand.cli.expand import make_parser

    words = {word for action in make_parser()._actions for word in action.option_strings}
    assert {f"--{name}" for name in OPTIONS} <= words


def test_defaults_hold_where_a_job_says_nothing() -> None:
    one, two = parse("""\
defaults: {src: a, dtype: source, new_layers: 1}
jobs:
  - {out: one}
  - {out: two, src: b, new-layers: 2, dtype: ~}
""")
    assert (one.src, one.dtype, one.new_layers) == ("a", "source", 1)
    assert (two.src, two.dtype, two.new_layers) == ("b", "source", 2)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("7", (7,)),
        ("7,15,23", (7, 15, 23)),
        ('"7, 15"', (7, 15)),
        ("[7, 15, 15]", (7, 15, 15)),
        ("start", "start"),
    ],
)
def test_positions(text: str, position: object) -> None:
    (job,) = parse(
        f"jobs: [{{src: a, out: b, new-layers: 3, position: {text}}}]".replace(
            "position: 7,15,23", 'position: "7,15,23"'
        )
    )
    assert job.position == position


def test_names_are_taken_as_they_were_typed() -> None:
    (job,) = parse("jobs: [{src: 1_0, out: 2026-01-01, new-layers: 1}]")
    assert (job.src, job.out) == ("1_0", "2026-01-01")


def test_matrix_makes_every_combination() -> None:
    jobs = parse("""\
defaults: {dtype: source}
matrix:
  src: [a, b]
  new-layers: [4, 8]
  position: [end, [0, 1]]
  out: "{model}-{layers}L-{position}"
""")
    assert [(job.src, job.new_layers, job.position) for job in jobs] == [
        (src, count, position) for src in "ab" for count in (4, 8) for position in ("end", (0, 1))
    ]
    assert {job.dtype for job in jobs} == {"source"}


def test_several_matrices_follow_the_jobs() -> None:
    jobs = parse("""\
defaults: {src: a, out: "{layers}"}
matrix:
  - {new-layers: [1, 2]}
  - {new-layers: 3, position: start}
jobs: [{new-layers: 9}]
""")
    assert [(job.new_layers, job.position) for job in jobs] == [
        (9, "end"),
        (1, "end"),
        (2, "end"),
        (3, "start"),
    ]
    assert [job.where for job in jobs] == ["jobs.yaml:5", *["jobs.yaml:3"] * 2, "jobs.yaml:4"]


def test_example_of_the_seed_model() -> None:
    jobs = open_jobs(Path(__file__).resolve().parents[2] / "scripts" / "openchat-family.yaml")
    names = {
        fill_template(
            job.out,
            {
                "model": "openchat-3.5-0106",
                "layers": str(32 + (job.new_layers or 0)),
                "position": str(job.position),
            },
        )
        for job in jobs
    }
    assert names == {
        f"family/openchat-3.5-0106-{layers}L-{position}"
        for position, sizes in (("end", (36, 40, 44, 48)), ("interleaved", (36, 40, 48)))
        for layers in sizes
    }
    assert {job.src for job in jobs} == {"openchat/openchat-3.5-0106"}


def test_template() -> None:
    values = {"model": "m", "new-layers": "4", "layers": "36"}
    assert fill_template("{{{model}}}-{new_layers}-{ layers }", values) == "{m}-4-36"


def test_all_faults_are_told_together_in_order() -> None:
    found = faults("""\
defaults: {src: a, dtyp: bfloat16}
jobs:
  - out: a
    new-layers: 0
  - {out: "{modl}", new-layers: 4}
  - 7
matrix:
  - {new-layers: [4, x], position: [end, middle], out: b}
extra: 1
""")
    assert found == [
        "jobs.yaml:1: dtyp: unknown key; did you mean dtype?",
        "4: new-layers: expected a whole number from 1, found 0",
        "5: out: unknown {modl} in '{modl}'; expected one of {model}, {layers}, {new-layers}, "
        "{position}, {dtype}",
        "6: jobs: expected an object, found '7'",
        "6: out is missing",
        "6: position end needs new-layers",
        "8: new-layers: expected a whole number from 1, found 'x'",
        "8: position: expected end, interleaved, start, @FILE, or layers such as 7,15,23,31, found "
        "'middle'",
        "9: extra: unknown key; expected defaults, jobs or matrix",
    ]


JOB = "src: a, out: b, new-layers: 1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "jobs.yaml:1: empty"),
        ("# nothing", "jobs.yaml:1: empty"),
        ("[1]", "expected an object"),
        ("text", "expected an object"),
        ("defaults: {src: a}", "no jobs; expected a list 'jobs', or a 'matrix'"),
        ("jobs: []", "expected a list of jobs"),
        ("jobs: {src: a}", "expected a list of jobs"),
        ("jobs: [[]]", "jobs: expected an object"),
        ("matrix: []", "expected a matrix or several"),
        ("matrix: {src: [], out: b, new-layers: 1}", "src: expected at least one value"),
        ("jobs: [{out: b, new-layers: 1}]", "src is missing"),
        ("jobs: [{src: a, new-layers: 1}]", "out is missing"),
        ("jobs: [{src: ~, out: b, new-layers: 1}]", "src is missing"),
        ("jobs: [{src: a, out: b}]", "position end needs new-layers"),
        (f"jobs: [{{{JOB}, private: true}}]", "private needs push-to-hub"),
        (f"jobs: [{{{JOB}, new_layers: 2}}]", "new-layers: stands twice"),
        (f"jobs: [{{{JOB}, token: hf_secret}}]", "give it as --token"),
        (f"jobs: [{{{JOB}, stream: true}}]", "run this one by itself, as --stream"),
        (f"jobs: [{{{JOB}, recipe: a.yml}}]", "run it by itself, as --recipe"),
        (f"jobs: [{{{JOB}, new-layer: 2}}]", "did you mean new-layers?"),
        (f"jobs: [{{{JOB}, [1]: 2}}]", "expected a name"),
        (f"jobs: [{{{JOB}, <<: {{chekc: true}}}}]", "did you mean check?"),
        ("jobs: [{src: [a], out: b, new-layers: 1}]", "src: expected a folder"),
        ("jobs: [{src: '', out: b, new-layers: 1}]", "src: expected a folder"),
        ("jobs: [{src: a, out: {}, new-layers: 1}]", "out: expected a text"),
        ('jobs: [{src: a, out: "b\\0", new-layers: 1}]', "out: expected a text"),
        ("jobs: [{src: a, out: 'b{', new-layers: 1}]", "out: expected a text"),
        ("jobs: [{src: a, out: 'b{}', new-layers: 1}]", "unknown {}"),
        ("jobs: [{src: a, out: b, new-layers: 1.5}]", "new-layers: expected a whole number"),
        ("jobs: [{src: a, out: b, new-layers: true}]", "new-layers: expected a whole number"),
        ("jobs: [{src: a, out: b, new-layers: -1}]", "new-layers: expected a whole number"),
        ("jobs: [{src: a, out: b, new-layers: 9999999}]", "new-layers: expected a whole number"),
        ("jobs: [{src: a, out: b, new-layers: [1, 2]}]", "new-layers: expected a whole number"),
        ("jobs: [{src: a, out: b, position: []}]", "position: expected end"),
        ("jobs: [{src: a, out: b, position: [end]}]", "position: expected end"),
        (f"jobs: [{{{JOB}, dtype: int8}}]", "dtype: expected bfloat16, float16, float32 or source"),
        (f"jobs: [{{{JOB}, verify: true}}]", "verify: expected tensors or logits"),
        (f"jobs: [{{{JOB}, reflink: 1}}]", "reflink: expected auto, always or never"),
        (f"jobs: [{{{JOB}, hardlink: 'true'}}]", "hardlink: expected true or false"),
        (f"jobs: [{{{JOB}, max-shard-size: big}}]", "size 'big'"),
        ("jobs: [{src: !!python/object:os.system a, out: b, new-layers: 1}]", "src: expected"),
        ("jobs: [\n{a: 1", "jobs.yaml:2: this is no YAML"),
        ("a: 1\n---\nb: 2", "another document begins"),
        ("jobs: *nowhere", "this is no YAML"),
        (b"\xff\xfe\xfa", "UTF-8"),
        (b" " * ((1 << 20) + 1), "at most 1048576 bytes"),
        ("[" * 500_000, "jobs.yaml:1: nested more than 100 levels deep"),
        ("- " * 500_000, "nested more than 100 levels deep"),
    ],
)
def test_every_way_to_be_wrong(text: str | bytes, said: str) -> None:
    found = faults(text)
    assert said in found[0]
    assert not any("hf_secret" in fault for fault in found)


def test_a_matrix_of_millions_is_refused() -> None:
    numbers = ", ".join(map(str, range(1, 202)))
    text = f"matrix: {{src: [{numbers}], new-layers: [{numbers}], out: b}}"
    assert faults(text) == ["jobs.yaml:1: matrix: makes 40401 jobs; expected at most 10000"]


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            open_jobs(path)


WORDS = st.sampled_from(
    [
        "defaults",
        "jobs",
        "matrix",
        "src",
        "out",
        "new-layers",
        "position",
        "verify",
        "1",
        "end",
        "~",
    ]
)
TREES = st.recursive(
    WORDS,
    lambda tree: st.lists(tree, max_size=3) | st.dictionaries(WORDS, tree, max_size=4),
    max_leaves=12,
)


@given(TREES)
def test_any_tree_is_read_or_refused_in_one_line(tree: object) -> None:
    import yaml

    try:
        parse_jobs(yaml.safe_dump(tree).encode(), "jobs.yaml")
    except RecipeError as error:
        assert "\n" not in str(error) and str(error).startswith("jobs.yaml")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(data: bytes) -> None:
    try:
        parse_jobs(data, "jobs.yaml")
    except RecipeError as error:
        assert "\n" not in str(error)
