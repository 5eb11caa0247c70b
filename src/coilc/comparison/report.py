"""What a comparison found: values a program can ask for, a table for the terminal, JSON, and one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from coilc.units import show_bytes, show_ratio, show_seconds

from .metrics import Difference


@dataclass(frozen=True)
class Row:
    """One compared value: an output of the model, or a value inside it.

    Attributes:
        name: the output's name, or the value's name in the exported program.
        scope: path of the module that computed it (``backbone.layers.3.mixer``); empty for outputs.
        place: ``file.py:line`` of the model's source; empty where unknown.
        tolerance: the relative error allowed.
        rounding: relative errors of PyTorch and of the artifact against the model evaluated in float64; None unless asked
            for. An artifact that is about as near to it as PyTorch is right, whatever the two have between them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    error: Difference
    tolerance: float
    scope: str = ""
    place: str = ""
    rounding: tuple[float, float] | None = None

    @property
    def ok(self) -> bool:
        return self.error.relative_error <= self.tolerance or self.only_rounding

    @property
    def only_rounding(self) -> bool:
        """Whether the artifact is at most twice as far from float64 as PyTorch is."""
        return self.rounding is not None and self.rounding[1] <= 2 * self.rounding[0]


@dataclass(frozen=True)
class Speed:
    """Seconds per run, measured alternately in one process with the same number of threads."""

    eager: tuple[float, ...]
    artifact: tuple[float, ...]
    threads: int

    @property
    def eager_median(self) -> float:
        return sorted(self.eager)[len(self.eager) // 2]

    @property
    def artifact_median(self) -> float:
        return sorted(self.artifact)[len(self.artifact) // 2]

    @property
    def ratio(self) -> float:
        """How many times faster the artifact is; below 1 it is slower."""
        return self.eager_median / self.artifact_median


@dataclass(frozen=True)
class Report:
    """An artifact against eager PyTorch on one set of inputs.

    ``layers`` holds the values inside the model in the order in which they are computed. ``sizes`` is in bytes.
    """

    model: str
    artifact: str
    target: str
    entry: str
    inputs: Mapping[str, str]
    outputs: tuple[Row, ...]
    layers: tuple[Row, ...]
    speed: Speed | None
    sizes: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(row.ok for row in self.outputs)

    @property
    def first_failure(self) -> Row | None:
        """The first value inside the model that is outside its tolerance; None if all are within."""
        return next((row for row in self.layers if not row.ok), None)

    def __getitem__(self, output: str) -> Difference:
        """How far an output is from eager PyTorch.

        Raises:
            KeyError: listing the outputs there are.
        """
        for row in self.outputs:
            if row.name == output:
                return row.error
        raise KeyError(f"no output '{output}'; the outputs are {', '.join(row.name for row in self.outputs)}")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        first = self.first_failure
        speed = self.speed and {
            **asdict(self.speed),
            "eager_median": self.speed.eager_median,
            "artifact_median": self.speed.artifact_median,
            "ratio": self.speed.ratio,
        }
        return {
            **{key: getattr(self, key) for key in ("ok", "model", "artifact", "target", "entry")},
            "inputs": dict(self.inputs),
            "outputs": [_plain(row) for row in self.outputs],
            "first_failure": first and _plain(first),
            "layers": [_plain(row) for row in self.layers],
            "speed": speed or None,
            "sizes": dict(self.sizes),
        }

    def to_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page with plots, readable in light and dark."""
        from .html import page

        Path(path).write_text(page(self))

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as captured:
            console.print(self)
        return captured.get()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(*_terminal(self))


def _plain(row: Row) -> dict[str, Any]:
    error = asdict(row.error)
    return {**{k: v for k, v in asdict(row).items() if k != "error"}, "shape": list(row.shape), **error, "ok": row.ok}


def shown_dims(shape: tuple[int, ...]) -> str:
    """``1 x 64 x 50280``."""
    return " x ".join(map(str, shape)) or "scalar"


def verdict(report: Report) -> str:
    """One sentence that says how it went."""
    if all(row.error.relative_error <= row.tolerance for row in report.outputs):
        return "The artifact computes what PyTorch computes, within the tolerance."
    if report.ok:
        return "The two differ by their rounding: the artifact is about as near to float64 as PyTorch is."
    first = report.first_failure
    if first is None:
        return "An output is outside its tolerance, though no value inside the model was found to be."
    where = f" in {first.scope}" * bool(first.scope) + f" ({first.place})" * bool(first.place)
    return f"The first value outside its tolerance is '{first.name}'{where}."


def _terminal(report: Report) -> list[Table | Text]:
    parts: list[Table | Text] = [Text(f"{report.model} in PyTorch against {report.artifact}", style="bold")]
    if report.inputs:
        parts.append(Text("inputs: " + ", ".join(f"{k} {v}" for k, v in report.inputs.items()), style="dim"))
    parts += [Text(), _outputs_table(report), Text()]
    if report.speed or report.sizes:
        parts += [_cost_table(report), Text()]
    if report.layers:
        worst = max(report.layers, key=lambda row: row.error.relative_error)
        values = "value" + "s" * (len(report.layers) > 1)
        text = f"{len(report.layers)} {values} inside the model compared; the largest relative error is "
        text += f"{worst.error.relative_error:.1e}, at '{worst.name}'" + f" in {worst.scope}" * bool(worst.scope)
        parts.append(Text(text))
    parts.append(Text(("✓ " if report.ok else "✗ ") + verdict(report), style="bold green" if report.ok else "bold red"))
    return parts


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def _outputs_table(report: Report) -> Table:
    scores = any(row.error.argmax_agreement is not None for row in report.outputs)
    wide = any(row.rounding for row in report.outputs)
    headings = ["output", "shape", "relative error", "allowed", "max abs error", "cosine"]
    exact = ["PyTorch to float64", "artifact to float64"] if wide else []
    table = _table(*headings, *(["same argmax"] if scores else []), *exact, "")
    for row in report.outputs:
        e = row.error
        cells = [
            row.name,
            shown_dims(row.shape),
            f"{e.relative_error:.1e}",
            f"{row.tolerance:.0e}",
            f"{e.max_abs_error:.1e}",
        ]
        cells.append(f"{e.cosine:.7f}")
        if scores:
            cells.append("" if e.argmax_agreement is None else f"{e.argmax_agreement:.2%}")
        if wide:
            cells += [f"{error:.1e}" for error in row.rounding or ()] or ["", ""]
        table.add_row(*cells, "[green]✓[/green]" if row.ok else "[red]✗[/red]")
    return table


def _cost_table(report: Report) -> Table:
    table = _table("", "PyTorch", "artifact", "ratio")
    if report.speed:
        s = report.speed
        runs = f"time per run, {s.threads} thread{'s' * (s.threads > 1)}"
        table.add_row(runs, show_seconds(s.eager_median), show_seconds(s.artifact_median), show_ratio(s.ratio))
    for name, label in SIZES.items():
        if name in report.sizes:
            eager = report.sizes.get(f"eager_{name}")
            table.add_row(label, show_bytes(eager) if eager else "", show_bytes(report.sizes[name]))
    return table


SIZES = {"weights": "weights", "code": "code (code.so)", "arena": "working memory"}
