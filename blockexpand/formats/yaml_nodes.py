"""YAML text → nodes that know their lines, and values out of them; faults are collected.

It builds no objects from tags: a node's value is text, a number, a list or an object. Merge keys
(`<<`) are read as YAML 1.1 has them, and a key that nothing reads may hold what is only an anchor
for other places. It knows nothing of what the text says.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

import yaml

from ..errors import RecipeError
from ..messages import and_more, either, one_line

MOST_YAML_NBYTES = 1 << 20

_MOST_FAULTS = 20

# Aliases make a short text a long document: what is read is counted as often as it is read.
_MOST_READ = 500_000

_SHOWN_CHARACTERS = 60

_MOST_DEPTH = 100

# libyaml, which comes with PyYAML almost everywhere, reads the same ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Members = dict[str, yaml.Node]

Pairs = dict[str, tuple[yaml.Node, yaml.Node]]

_MERGE = "tag:yaml.org,2002:merge"


def compose(data: bytes, file: str) -> tuple[yaml.Node | None, str]:
    """Return a document's root node, None for an empty one, and its text.

    Raises: RecipeError for what is no YAML, with file and line.
    """
    if len(data) > MOST_YAML_NBYTES:
        raise RecipeError(f"{file}: expected at most {MOST_YAML_NBYTES} bytes, found more")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"{file}:{line}: expected UTF-8 text") from None
    try:
        anchors = _scan(text, file)
        root = yaml.compose(text, Loader=_LOADER)
        if root is not None and anchors:
            _mark_anchors(root, anchors, {})
        return root, text
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # libyaml says "in the line after the last" of what ends too early.
        last = text.count("\n") + 1
        where = f"{file}:{min(mark.line + 1, last)}" if mark else file
        if error.problem == "but found another document":
            raise RecipeError(f"{where}: another document begins; expected one in a file") from None
        raise RecipeError(f"{where}: this is no YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = one_line(error, 200)
        raise RecipeError(f"{file}: this is no YAML: {reason}") from None


def has_key(root: yaml.Node, *keys: str) -> bool:
    """Tell whether a document's object has one of these keys."""
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return any(name.value in keys for name, _ in pairs)


def _scan(text: str, file: str) -> set[int]:
    """Return where the nodes begin that have an anchor.

    Refuses a document in which libyaml's composer would overflow the stack of the process: events
    come one by one, at whatever depth. Raises: RecipeError.
    """
    depth = 0
    anchors: set[int] = set()
    for event in yaml.parse(text, Loader=_LOADER):
        if not isinstance(event, yaml.AliasEvent) and getattr(event, "anchor", None) is not None:
            assert event.start_mark is not None  # only a document's end has none
            anchors.add(event.start_mark.index)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEPTH:
                raise RecipeError(
                    f"{file}:{line_of(event)}: nested more than {_MOST_DEPTH} levels deep"
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return anchors


def _mark_anchors(node: yaml.Node, anchors: set[int], seen: dict[int, bool]) -> bool:
    """Note of each node whether it, or a part of it, is what an alias elsewhere can stand for."""
    if id(node) not in seen:
        seen[id(node)] = node.start_mark.index in anchors
        parts = [node] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        inner = [_mark_anchors(part, anchors, seen) for part in parts if part is not node]
        seen[id(node)] |= any(inner)
        node.has_anchor = seen[id(node)]  # type: ignore[attr-defined]
    return seen[id(node)]


def _defines_anchor(name: yaml.Node, value: yaml.Node) -> bool:
    """Tell whether a pair's value stands there for other places; an alias stands before its key."""
    after = bool(value.start_mark.index > name.start_mark.index)
    return after and getattr(value, "has_anchor", False)


class NodeReader:
    """Reads values out of nodes. After a fault it goes on, so that all are found together."""

    def __init__(self, file: str, refused: Mapping[str, str]) -> None:
        """`refused` maps keys that are known and not understood to what to do about them."""
        self._file = file
        self._refused = refused
        self._faults: list[tuple[int, str]] = []
        self._merged: dict[int, Pairs | None] = {}
        self._read = 0

    def fault(self, node: yaml.Node, text: str) -> None:
        line = line_of(node)
        self._faults.append((line, f"{self._file}:{line}: {text}"))

    def check(self) -> None:
        """Raises: RecipeError with all faults in the order of their lines, if there are any."""
        lines = [text for _, text in sorted(self._faults, key=lambda fault: fault[0])]
        if lines:
            raise RecipeError(and_more(lines, _MOST_FAULTS, "; "))

    def members(self, node: yaml.Node, key: str, allowed: Sequence[str]) -> Members:
        """Return an object's members, null ones left out; others than those allowed are faults."""
        known: Members = {}
        for text, (name, value) in self._pairs(node, key, allowed).items():
            if text in allowed:
                if not _is_null(value):
                    known[text] = value
            elif _defines_anchor(name, value) and not difflib.get_close_matches(
                text, allowed, 1, 0.8
            ):
                continue  # stands here for other places to refer to
            elif text in self._refused:
                if not _is_null(value):
                    self.fault(name, f"{text}: {self._refused[text]}")
            else:
                hint = did_you_mean(text, allowed)
                self.fault(name, f"{text}: unknown key; {hint or f'expected {either(allowed)}'}")
        return known

    def names(self, node: yaml.Node, key: str) -> Members:
        """Return an object's members, whatever their names."""
        return {text: value for text, (_, value) in self._pairs(node, key, None).items()}

    def items(self, node: yaml.Node, key: str, wanted: str) -> list[yaml.Node]:
        """Return a list's items; an empty list is a fault."""
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.fault(node, f"{key}: expected {wanted}, found {show(node)}")
            return []
        self._count(node)
        return list(node.value)

    def text(self, node: yaml.Node, key: str, wanted: str) -> str | None:
        value = _construct(node)
        if not isinstance(value, str) or not value or not value.isprintable():
            self.fault(node, f"{key}: expected {wanted}, found {show(node)}")
            return None
        return value

    def _count(self, node: yaml.Node) -> None:
        self._read += len(node.value)
        if self._read > _MOST_READ:
            raise RecipeError(
                f"{self._file}:{line_of(node)}: more than {_MOST_READ} entries, aliases written "
                "out; expected a recipe that a person can read"
            )

    def _pairs(self, node: yaml.Node, key: str, allowed: Sequence[str] | None) -> Pairs:
        """Return an object's pairs, those that it merges below its own.

        Anchors for other places may stand under one name again and again: `allowed` has the names
        that mean something here, None if all do.
        """
        if not isinstance(node, yaml.MappingNode):
            self.fault(node, f"{key}: expected an object, found {show(node)}")
            return {}
        self._count(node)
        own: Pairs = {}
        merged: Pairs | None = None
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                self.fault(name, f"{key}: expected a name before the colon, found {show(name)}")
            elif name.tag == _MERGE:
                if merged is not None:
                    self.fault(name, "<<: stands twice in the same object")
                    continue
                merged = {}
                # Of several the first goes before the others, as YAML has it. (PyYAML 6.0.4 does
                # it the other way round for names that Python has not interned.)
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    merged = self._merge(source) | merged
            elif name.value in own:
                known = allowed is None or name.value in allowed
                if known or not _defines_anchor(name, value):
                    self.fault(name, f"{name.value}: stands twice in the same object")
            else:
                own[name.value] = name, value
        return (merged or {}) | own

    def _merge(self, node: yaml.Node) -> Pairs:
        """Return the pairs of an object that others merge; each is read once."""
        if id(node) not in self._merged:
            self._merged[id(node)] = None
            self._merged[id(node)] = self._pairs(node, "<<", None)
        pairs = self._merged[id(node)]
        if pairs is None:
            self.fault(node, "<<: an object cannot be merged into itself")
        return pairs or {}


def line_of(node: yaml.Node | yaml.Event) -> int:
    """Return the line that a node begins on, from 1."""
    assert node.start_mark is not None
    return int(node.start_mark.line) + 1


def number(node: yaml.Node) -> float | None:
    """Return a finite number. YAML 1.1 takes `1e-3` for text, which is meant as a number."""
    value = _construct(node)
    try:
        if isinstance(value, str) and "_" not in value:
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None
    except (ValueError, OverflowError):
        return None


def whole_number(node: yaml.Node) -> int | None:
    value = _construct(node)
    return value if type(value) is int and abs(value) < 1 << 31 else None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]}?" if close else ""


def show(node: yaml.Node) -> str:
    """Spell a node on one line of limited length."""
    if isinstance(node, yaml.SequenceNode):
        scalars = [item.value[:20] for item in node.value if isinstance(item, yaml.ScalarNode)]
        if len(scalars) == len(node.value) <= 4:
            return f"[{', '.join(scalars)}]"
        return f"a list of {len(node.value)}"
    if not isinstance(node, yaml.ScalarNode):
        return "an object"
    if _is_null(node):
        return "nothing"
    text = node.value
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def _construct(node: yaml.Node) -> object:
    """Return a scalar as the safe loader has it: text, a number, a truth value, a date or null."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        return None


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
