"""A recipe file → its opened models. It plans nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.files import CONFIG_FILE, MANIFEST_FILE
from ..checkpoints.sources import HubOptions, ModelRef, OpenedSource, open_headers, open_source
from ..errors import CheckpointError, InputError, RecipeError
from ..formats.yaml_nodes import MOST_YAML_NBYTES
from ..fs.paths import expand_home
from ..messages import show
from ..planning.mergekit.parsing import parse_recipe
from ..planning.mergekit.recipe import MergeRecipe
from ..progress import SILENT, Progress

Checkpoints = Mapping[str, Checkpoint]


def read_recipe(file: str | Path, src: str | None) -> MergeRecipe:
    """Read a mergekit recipe. `src` may say where the model of a recipe with one model is.

    Raises: InputError where the file cannot be read; RecipeError.
    """
    path = expand_home(file)
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{file}: {what}; expected a mergekit recipe, a YAML file")
    with path.open("rb") as stream:
        # The parser refuses more than a MiB.
        merge = parse_recipe(stream.read(MOST_YAML_NBYTES + 1), str(file))
    if src is not None and len(merge.models) > 1:
        raise RecipeError(
            f"{file}: has {len(merge.models)} models ({', '.join(merge.models)}), so --src {src} "
            "cannot say where the model is; leave --src out and write the folders into the recipe"
        )
    return merge


def open_models(
    merge: MergeRecipe,
    src: str | None,
    options: HubOptions,
    *,
    headers_only: bool = False,
    progress: Progress = SILENT,
    check: Callable[[Checkpoints], object] | None = None,
) -> tuple[dict[str, Checkpoint], dict[str, ModelRef]]:
    """Open every model of a recipe, as `open_source` does; one under two names is one object.

    `check` sees the headers of all before anything is downloaded. `src` is where a recipe's only
    model is taken from. Raises: CheckpointError, HubError.
    """

    def place(name: str) -> tuple[str, HubOptions]:
        # A revision is that of --src; in a recipe it is part of a model's name.
        return (src, options) if src is not None else (name, replace(options, revision=None))

    checkpoints: dict[str, Checkpoint] = {}
    names: dict[str, ModelRef] = {}
    firsts: dict[tuple[object, ...], str] = {}
    same: dict[str, str] = {}
    for name in merge.models:
        checkpoint, found = open_source(*place(name), headers_only=True)
        folder = checkpoint.root.resolve() if checkpoint.root.is_dir() else None
        same[name] = firsts.setdefault((folder, found.repo, found.revision, found.commit), name)
        checkpoints[name], names[name] = checkpoints.get(same[name], checkpoint), found
    if check is not None:
        check(checkpoints)
    for name, first in same.items():
        if first != name:
            checkpoints[name] = checkpoints[first]
        elif not headers_only and not checkpoints[name].root.is_dir():
            checkpoints[name], names[name] = open_source(*place(name), progress=progress)
    return checkpoints, names


def find_others(
    merge: MergeRecipe, checkpoints: Checkpoints, names: Mapping[str, ModelRef]
) -> dict[str, ModelRef]:
    """Return the models of a recipe that are not the one whose config the output has."""
    base = checkpoints[merge.base]
    return {name: names[name] for name in merge.models if checkpoints[name] is not base}


def open_others(
    others: Mapping[str, ModelRef], options: HubOptions, *, offline: bool
) -> tuple[dict[str, OpenedSource], tuple[str, ...]]:
    """Open the headers of the further models that an output's manifest names, each at its commit.

    Whoever made the output chose them: for an `offline` source nothing is fetched, and what is not
    a folder must be in the Hub's cache. Returns notes of commits that no branch has, too.
    Raises: CheckpointError, HubError.
    """
    opened: dict[str, OpenedSource] = {}
    notes = []
    for name, other in others.items():
        folder = expand_home(name)
        if other.repo is None or folder.exists():
            opened[name] = open_headers(str(folder), options)
            continue
        from ..checkpoints import hub

        ref = hub.parse_repo_ref(name, None)
        if ref.repo_id != other.repo:
            raise CheckpointError(
                f"{MANIFEST_FILE}: field 'models': says that {show(name)} is {show(other.repo)}; "
                f"expected {ref.repo_id}"
            )
        commit = other.commit or ref.revision or "main"
        if offline:
            opened[name] = _open_cached(ref.repo_id, commit, other, options)
            continue
        opened[name] = open_headers(f"{ref.repo_id}@{commit}", replace(options, revision=None))
        branch = ref.revision or "main"
        if hub.is_in_history(ref.repo_id, commit, branch, token=options.token) is False:
            notes.append(f"commit {commit} of {ref.repo_id} is not in the history of {branch}")
    return opened, tuple(notes)


def _open_cached(repo: str, commit: str, other: ModelRef, options: HubOptions) -> OpenedSource:
    from ..checkpoints import hub

    config = hub.find_cached(repo, CONFIG_FILE, commit, options.cache_dir)
    if config is None:
        raise CheckpointError(
            f"the output also takes layers from {repo} at {commit}, which is not in the Hub's "
            "cache; the source is a folder, so nothing is fetched because an output says so: if "
            f"you trust it, run `hf download {repo} --revision {commit}`, then the same command"
        )
    return OpenedSource(checkpoint=open_checkpoint(config.parent), name=other)
