"""The documentation is true: the tour runs and prints what it says, tables equal the code, links lead somewhere."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from coilc.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<output>.*?)```)?", re.DOTALL)


def test_the_tour_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Every Python block runs, in order, in one namespace; a text block after it is what it prints."""
    page = ROOT / "docs" / "tour.md"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "tour"}

    def run(block: re.Match[str]) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(block["code"], str(page), "exec"), names)
        shown = printed.getvalue()
        return f"```python\n{block['code']}```" + (f"\n\n```text\n{shown}```" if shown else "")

    text = page.read_text()
    rewritten = BLOCK.sub(run, text)
    if request.config.getoption("--update-golden"):
        page.write_text(rewritten)
    else:
        assert rewritten == text


def test_the_table_of_switches_is_complete() -> None:
    text = (ROOT / "docs" / "debugging.md").read_text()
    table = text.split("<!-- settings -->\n")[1].split("<!-- end -->")[0]
    assert table == "".join(f"| `{setting.name}` | {setting.doc} |\n" for setting in SETTINGS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"
