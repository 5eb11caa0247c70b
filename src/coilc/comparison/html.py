"""The comparison as one HTML file: inline style, inline SVG, no script, no network, readable in light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from coilc.units import show_bytes, show_ratio, show_seconds

from .report import SIZES, Report, Row, shown_dims, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # stands for the page's text colour and becomes currentColor, so that plots follow light and dark
GOOD, BAD, PLAIN = "#2a9d5c", "#d6453d", "#6c7a89"

STYLE = """
:root { color-scheme: light dark; --line: #d9dde2; --soft: #f4f6f8; --ink: #1c232b; --page: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --line: #39414b; --soft: #222931; --ink: #e4e8ec; --page: #171c22; } }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 62rem;
       margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.45rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.facts { opacity: .75; margin: 0 0 1.2rem; } .facts code { font-size: .92em; }
.verdict { padding: .7rem 1rem; border-left: .35rem solid; background: var(--soft); font-weight: 600; }
.good { border-color: #2a9d5c; } .bad { border-color: #d6453d; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .32rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; } th.text { text-align: left; }
tr.fail td { color: #d6453d; font-weight: 600; }
svg { width: 100%; height: auto; color: var(--ink); } details summary { cursor: pointer; margin: .6rem 0; }
p.note { opacity: .75; font-size: .93em; max-width: 46rem; }
"""


def page(report: Report) -> str:
    """The whole page."""
    inputs = ", ".join(f"<code>{escape(k)}</code> {escape(v)}" for k, v in report.inputs.items())
    body = [
        f"<h1>{escape(report.model)} in PyTorch against {escape(report.artifact)}</h1>",
        f'<p class="facts">entry <code>{escape(report.entry)}</code>, target <code>{escape(report.target)}</code>'
        + (f", inputs {inputs}" if inputs else "")
        + "</p>",
        f'<p class="verdict {"good" if report.ok else "bad"}">{escape(verdict(report))}</p>',
        "<h2>Outputs</h2>",
        _rows_table(report.outputs, "output"),
        '<p class="note">The relative error is the Frobenius norm of the difference over that of PyTorch\'s result. '
        "Rounding alone gives about 1e-7 to 1e-6 in float32, since the two add up in different orders.</p>",
        *_layers(report),
        *_speed(report),
        *_sizes(report),
    ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(report.model)}</title>"
    return (
        f"<!doctype html><html lang='en'><head>{head}<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _table(
    headings: Sequence[str], rows: Iterable[Sequence[Any]], text: Sequence[int] = (), bad: Sequence[int] = ()
) -> str:
    """A table whose columns ``text`` are words and whose rows ``bad`` are marked."""

    def line(cells: Sequence[Any], tag: str, fail: bool = False) -> str:
        inner = "".join(
            f"<{tag}{' class=text' if i in text else ''}>{escape(str(cell))}</{tag}>" for i, cell in enumerate(cells)
        )
        return f"<tr{' class=fail' if fail else ''}>{inner}</tr>"

    lines = [line(cells, "td", index in bad) for index, cells in enumerate(rows)]
    return f'<div class="scroll"><table>{line(headings, "th")}{"".join(lines)}</table></div>'


def _rows_table(rows: Sequence[Row], what: str) -> str:
    scores = any(row.error.argmax_agreement is not None for row in rows)
    exact = any(row.rounding for row in rows)
    where = any(row.scope or row.place for row in rows)
    headings = [what, "shape", "relative error", "allowed", "max abs error", "cosine"]
    headings += ["same argmax"] * scores + ["PyTorch to float64", "artifact to float64"] * exact + ["where"] * where
    bad = [index for index, row in enumerate(rows) if not row.ok]
    return _table(
        headings, [_cells(row, scores, exact, where) for row in rows], text=[len(headings) - 1] * where, bad=bad
    )


def _cells(row: Row, scores: bool, exact: bool, where: bool) -> list[str]:
    e = row.error
    agreement = "" if e.argmax_agreement is None else f"{e.argmax_agreement:.2%}"
    cells = [row.name, f"{row.dtype} {shown_dims(row.shape)}", f"{e.relative_error:.2e}", f"{row.tolerance:.0e}"]
    cells += [f"{e.max_abs_error:.2e}", f"{e.cosine:.7f}"] + [agreement] * scores
    cells += [f"{error:.2e}" for error in row.rounding or ()] or ["", ""] * exact
    return cells + [" ".join(part for part in (row.scope, row.place) if part)] * where


def _layers(report: Report) -> list[str]:
    if not report.layers:
        return []
    return [
        "<h2>Through the model</h2>",
        _plot(lambda axes: _draw_layers(axes, report.layers), 8.6, 3.1),
        '<p class="note">Each point is a value inside the model, in the order of computation, compared with the same value '
        "in PyTorch. Errors should grow slowly; a jump shows where to look.</p>",
        f"<details><summary>All {len(report.layers)} values</summary>{_rows_table(report.layers, 'value')}</details>",
    ]


def _draw_layers(axes: Axes, rows: Sequence[Row]) -> None:
    floor = 1e-9
    heights = [min(max(row.error.relative_error, floor), 1e3) for row in rows]
    axes.scatter(range(len(rows)), heights, s=11, c=[GOOD if row.ok else BAD for row in rows], linewidths=0, zorder=3)
    axes.step(
        range(len(rows)), [row.tolerance or floor for row in rows], where="mid", color=BAD, linestyle="--", linewidth=1
    )
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor / 2)
    axes.set_xlabel("value, in order of computation")
    axes.set_ylabel("relative error")


def _speed(report: Report) -> list[str]:
    if not report.speed:
        return []
    s = report.speed
    threads = f"{s.threads} thread{'s' * (s.threads > 1)}"
    rows = [
        ("PyTorch, eager", show_seconds(s.eager_median), show_seconds(min(s.eager)), show_seconds(max(s.eager))),
        ("artifact", show_seconds(s.artifact_median), show_seconds(min(s.artifact)), show_seconds(max(s.artifact))),
    ]
    return [
        f"<h2>Speed: {show_ratio(s.ratio)} than eager PyTorch</h2>",
        _table(("time per run", "median", "fastest", "slowest"), rows),
        _plot(lambda axes: _draw_speed(axes, report), 8.6, 1.5),
        f'<p class="note">{len(s.eager)} runs of each, alternately, in one process, {threads} each.</p>',
    ]


def _draw_speed(axes: Axes, report: Report) -> None:
    assert report.speed
    for height, samples, colour in ((1, report.speed.eager, PLAIN), (0, report.speed.artifact, GOOD)):
        milliseconds = [1e3 * sample for sample in samples]
        axes.barh(height, sorted(milliseconds)[len(milliseconds) // 2], color=colour, alpha=0.45, height=0.6)
        axes.scatter(milliseconds, [height] * len(milliseconds), s=9, color=colour, zorder=3, linewidths=0)
    axes.set_yticks([1, 0], ["PyTorch", "artifact"])
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds per run")


def _sizes(report: Report) -> list[str]:
    rows = [(label, show_bytes(report.sizes[name])) for name, label in SIZES.items() if name in report.sizes]
    return ["<h2>Sizes</h2>", _table(("", "size"), rows)] if rows else []


def _plot(draw: Any, width: float, height: float) -> str:
    """An inline SVG, drawn without pyplot so that no global state or display is touched."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink = {key: INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")}
    style = {**ink, "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "svg.hashsalt": "coilc"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.grid(color=PLAIN, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
