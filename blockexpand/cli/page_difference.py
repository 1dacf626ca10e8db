"""Comparisons as one page of HTML that stands alone: no network, no script. It writes no file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath
from statistics import fmean

from .._version import __version__
from ..models.decoder import split_name
from ..verification.difference import Difference, TensorDifference
from .drawing import STEPS, draw_growth, draw_heat, draw_layers, hue
from .text_sizes import format_size

# What a page is known by that an earlier comparison wrote, among the first bytes of the file.
PAGE_MARK = '<meta name="generator" content="blockexpand diff">'

_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1a2233;--soft:#5b667a;--line:#d9dee7;
--old:#b8c0cc;--new:#0b6bcb;--good:#116b3c;--bad:#b3261e;--l:42%;
--q0:#eef1f5;--q1:#dcebfa;--q2:#b6d6f4;--q3:#85bbec;--q4:#4f9be0;--q5:#1f75c4;--q6:#0b4a85;
--t0:#5b667a;--t1:#1a2233;--t2:#1a2233;--t3:#1a2233;--t4:#08111f;--t5:#fff;--t6:#fff}
@media (prefers-color-scheme:dark){:root{--ground:#12161d;--ink:#e6eaf1;--soft:#9aa5b8;
--line:#2c3442;--old:#4a5464;--new:#5aa9f5;--good:#6fd39a;--bad:#ff8a80;--l:66%;
--q0:#1c222c;--q1:#172c44;--q2:#173f66;--q3:#1a5690;--q4:#2f78bd;--q5:#63a6e4;--q6:#b3d6f7;
--t0:#9aa5b8;--t1:#e6eaf1;--t2:#e6eaf1;--t3:#fff;--t4:#fff;--t5:#08111f;--t6:#08111f}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 .6rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.2rem 0 .5rem}
p,li{max-width:44rem;overflow-wrap:anywhere}.soft{color:var(--soft);font-size:.9rem}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
.scroll{overflow-x:auto;padding-bottom:.4rem}svg{display:block;max-width:none}
svg.wide{width:100%;max-width:36rem;height:auto}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}svg .tick{text-anchor:middle}
svg .side{text-anchor:end}svg .name{fill:var(--ink);font-family:ui-monospace,monospace}
svg .value{text-anchor:middle;font-size:10px}.old{fill:var(--old)}.new{fill:var(--new)}
.none{fill:none;stroke:var(--line)}.grid{stroke:var(--line)}
.curve polyline{fill:none;stroke:hsl(var(--hue) 70% var(--l));stroke-width:2}
.curve circle{fill:hsl(var(--hue) 70% var(--l))}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0;list-style:none;font-size:.9rem}
.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.35rem;
background:hsl(var(--hue) 70% var(--l))}
table{border-collapse:collapse;font-size:.85rem}
td,th{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left;font-family:ui-monospace,monospace}
summary{cursor:pointer;color:var(--soft)}
""" + "".join(
    f"rect.q{n}{{fill:var(--q{n})}}svg text.q{n}{{fill:var(--t{n})}}" for n in range(STEPS)
)

_MOST_ROWS = 2000


def render_page(differences: Sequence[Difference]) -> str:
    """Return the page of one comparison, or of several with the same base, in their order."""
    last = differences[-1]
    layers = next((d for d in reversed(differences) if d.layer_map), None)
    base, other = _name(last.base), _name(last.other)
    title = f"{other} against {base}"
    parts = [f"<h1>{escape(title)}</h1>", _summary(last)]
    if layers is not None:
        parts.append(_section_layers(layers))
        new = [i for i, entry in enumerate(layers.layer_map) if entry.is_new]
        tables = [_tabulate(difference) for difference in differences]
        if tables[-1] and new:
            parts.append(_section_heat(tables[-1], new, other))
        if len(differences) > 1 and new:
            parts.append(_section_growth(differences, tables, new))
    parts.append(_section_numbers(last))
    parts.append(
        f'<p class="soft">Made with blockexpand {escape(__version__)}: '
        "<code>blockexpand diff BASE OTHER --html FILE</code></p>"
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{PAGE_MARK}\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _name(path: str) -> str:
    return PurePath(path).name or path


def _summary(difference: Difference) -> str:
    originals = [t for t in difference.tensors if t.base_name and not t.in_new_block]
    if difference.lost:
        count = f"{len(difference.lost)} of {len(originals)}"
        verdict = f'<p class="bad">{count} original tensors are not as in the base.</p>'
    else:
        verdict = f'<p class="good">All {len(originals)} original tensors are bit-identical.</p>'
    new = [tensor for tensor in difference.tensors if tensor.in_new_block]
    moved = sum(t.statistics is not None and t.statistics.changed_share > 0 for t in new)
    size = format_size(sum(tensor.nbytes for tensor in new))
    return (
        f"{verdict}<p>{len(new)} tensors ({size}) are in new blocks; {moved} of them have moved "
        f'from where they began.</p><p class="soft">{escape(difference.matched_by)}</p>'
    )


def _section_layers(difference: Difference) -> str:
    said = [
        (
            entry.is_new,
            f"layer {index}: {'new, a clone of' if entry.is_new else 'original'} {entry.source}",
        )
        for index, entry in enumerate(difference.layer_map)
    ]
    return (
        f'<h2>Layers</h2><div class="scroll">{draw_layers(said)}</div>'
        '<p class="soft">Numbers count from 0; tall layers are new.</p>'
    )


Table = Mapping[str, Mapping[int, Sequence[TensorDifference]]]


def _tabulate(difference: Difference) -> Table:
    """Return the tensors of new blocks that were measured: kind, layer, experts together."""
    table: dict[str, dict[int, list[TensorDifference]]] = {}
    for tensor in difference.tensors:
        split = split_name(tensor.name, difference.layer_prefix)
        if tensor.in_new_block and tensor.statistics is not None and split is not None:
            layer, suffix = split
            kind = re.sub(r"\.\d+\.", ".{e}.", suffix)
            table.setdefault(kind, {}).setdefault(layer, []).append(tensor)
    return table


def _mean(tensors: Sequence[TensorDifference]) -> float | None:
    found = [t.statistics.distance for t in tensors if t.statistics is not None]
    known = [distance for distance in found if distance is not None]
    return fmean(known) if known else None


def _section_heat(table: Table, new: Sequence[int], other: str) -> str:
    rows = []
    for kind, layers in table.items():
        cells = []
        for layer in new:
            tensors = layers.get(layer, [])
            distance = _mean(tensors)
            shares = [t.statistics.changed_share for t in tensors if t.statistics is not None]
            share = f", {100 * fmean(shares):.3g} % of the elements changed" if shares else ""
            shown = "not measured" if distance is None else f"{distance:.4g}"
            cells.append((distance, f"layer {layer}, {kind}: {shown}{share}"))
        rows.append((kind, cells))
    return (
        f"<h2>How far the new blocks have come</h2><p>In {escape(other)}: the distance of each "
        "tensor from where it began, divided by the norm of the tensor that it is a clone of. "
        "Columns are the new layers; darker in light mode, brighter in dark mode, is further.</p>"
        f'<div class="scroll">{draw_heat([str(layer) for layer in new], rows)}</div>'
    )


def _section_growth(
    differences: Sequence[Difference], tables: Sequence[Table], new: Sequence[int]
) -> str:
    curves: dict[str, list[float | None]] = {}
    for layer in new:
        values: list[float | None] = []
        for table in tables:
            means = [_mean(layers[layer]) for layers in table.values() if layer in layers]
            known = [mean for mean in means if mean is not None]
            values.append(fmean(known) if known else None)
        curves[f"layer {layer}"] = values
    names = "".join(f"<li>{escape(_name(d.other))}</li>" for d in differences)
    key = "".join(
        f'<li style="--hue:{hue(n, len(curves)):.0f}"><i></i>{escape(name)}</li>'
        for n, name in enumerate(curves)
    )
    # Trainers end the names of checkpoints in the number of steps.
    steps = [re.search(r"\d+$", _name(difference.other)) for difference in differences]
    points = [step[0] if step is not None else "" for step in steps]
    if "" in points or len(set(points)) < len(points):
        points = [str(number) for number in range(1, len(differences) + 1)]
    return (
        "<h2>Growth</h2><p>The mean of a block's distances, at each checkpoint.</p>"
        f'{draw_growth(points, curves)}<ul class="key">{key}</ul><ol class="soft">{names}</ol>'
    )


def _section_numbers(difference: Difference) -> str:
    moved = [t for t in difference.tensors if t.statistics is not None and t.status != "same"]
    rows = []
    for tensor in moved[:_MOST_ROWS]:
        statistics = tensor.statistics
        assert statistics is not None
        distance = "–" if statistics.distance is None else f"{statistics.distance:.4g}"
        share = f"{100 * statistics.changed_share:.4g} %"
        where = "new block" if tensor.in_new_block else tensor.status
        rows.append(
            f"<tr><td>{escape(tensor.name)}</td><td>{where}</td><td>{distance}</td>"
            f"<td>{share}</td></tr>"
        )
    missing = [t for t in difference.tensors if t.status == "missing"]
    if missing:
        rows.append(f"<tr><td>{len(missing)} tensors</td><td>missing</td><td></td><td></td></tr>")
    if not rows:
        return ""
    more = f" (the first {_MOST_ROWS})" if len(moved) > _MOST_ROWS else ""
    return (
        f"<h2>Numbers</h2><details><summary>{len(moved)} tensors that were measured{more}"
        '</summary><div class="scroll"><table><thead><tr><th>tensor</th><th>is</th>'
        "<th>distance</th><th>elements changed</th></tr></thead><tbody>"
        f"{''.join(rows)}</tbody></table></div></details>"
    )
