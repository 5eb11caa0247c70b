"""What the command line prints: stages and seconds on stderr, tables or their JSON twin on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

PLAIN_WIDTH = 200  # a pipe has no width; wide enough that no cell is cut


def console(*, stderr: bool = False) -> Console:
    """A console on the current streams, so that redirection after import is seen."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=False)


def emit(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, as_json: bool, title: str = "", note: str = ""
) -> None:
    """Print rows as a table, or all their fields as JSON.

    Args:
        columns: key of a row -> heading; rows may hold more keys than the table shows, JSON has them all.
        note: one line under the table, for people only.
    """
    if as_json:
        emit_json(list(rows))
        return
    table = Table(
        title=title or None, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    numeric = {key for key in columns if rows and all(isinstance(row.get(key), int | float) for row in rows)}
    for key, heading in columns.items():
        table.add_column(heading, justify="right" if key in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(key)) for key in columns))
    out = console()
    out.print(table)
    if note:
        out.print(f"\n{note}", markup=False)


def emit_json(value: Any) -> None:
    """Print a value as JSON; paths and NumPy scalars become text and numbers."""
    print(json.dumps(value, indent=2, default=_plain, ensure_ascii=False))


def cell(value: Any) -> str:
    """A table cell: floats with four digits, nothing for None, lists joined."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(str, value))
    return str(value).replace("[", "\\[")


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def folder_size(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Stages:
    """Progress of long work: call it with a stage's name when it begins, and once more with its seconds when it ends.

    A stage also ends when the next one begins. A terminal shows a spinner with the stage's name; anything else gets
    one plain line per finished stage.
    """

    def __init__(self) -> None:
        self.console = console(stderr=True)
        self.status = Status("", console=self.console)
        self.name = ""
        self.began = 0.0

    def __enter__(self) -> Stages:
        return self

    def __call__(self, name: str, seconds: float | None = None) -> None:
        self._finish("[green]✓[/green]")
        if seconds is None:
            self.name, self.began = name, time.perf_counter()
            if self.console.is_terminal:
                self.status.update(f"[bold]{name}[/bold] ...")
                self.status.start()

    def _finish(self, mark: str) -> None:
        if self.name:
            self.status.stop()
            self.console.print(f"{mark} {self.name:<32} {time.perf_counter() - self.began:7.1f} s")
        self.name = ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish("[green]✓[/green]" if error is None else "[red]✗[/red]")
