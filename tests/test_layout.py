"""The shape of the repository: folders, links, layers, file sizes and names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("frontend", "ir", "passes", "codegen", "runtime")
PACKAGE = ROOT / "src" / "coilc"

# What each layer may import besides the standard library: our layers first, other people's packages second.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "settings": (set(), set()),
    "runtime": (set(), {"numpy", "ml_dtypes"}),
    "ir": ({"ir"}, {"numpy", "ml_dtypes"}),
    "passes": ({"passes", "ir", "settings"}, {"numpy", "networkx"}),
    "frontend": (
        {"frontend", "ir", "settings"},
        {"numpy", "ml_dtypes", "sympy", "torch", "transformers", "onnx", "safetensors"},
    ),
    "codegen": (
        {"codegen", "ir", "passes", "runtime", "settings"},
        {"numpy", "ml_dtypes", "networkx", "safetensors", "tvm", "tvm_ffi", "ziglang"},
    ),
}
LONGEST_FILE = 500


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0] if PACKAGE not in path.parents else path.stem


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import; imports for type checkers alone do not count."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "coilc":
            yield from ((node.lineno, f"coilc.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
        yield from imports(node)


LAYER_FILES = [p for f in FOLDERS for p in sources(ROOT / f)] + [PACKAGE / "settings.py"]


@pytest.mark.parametrize("path", LAYER_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_layer_imports_only_what_it_may(path: Path) -> None:
    ours, others = LAYERS[layer_of(path)]
    for line, name in imports(ast.parse(path.read_text())):
        top, *rest = name.split(".")
        place = f"{path.relative_to(ROOT)}:{line}"
        assert top not in FOLDERS, f"{place} imports '{name}'; write 'coilc.{name}', or a relative import"
        if top == "coilc":
            assert rest, f"{place} imports the whole package"
            assert rest[0] in ours, f"{place}: this layer may not import coilc.{rest[0]}"
        elif top not in sys.stdlib_module_names:
            assert top in others, f"{place}: this layer may not import {top}"


@pytest.mark.parametrize(
    "path", [p for f in FOLDERS for p in sources(ROOT / f)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_inside_a_folder_are_relative(path: Path) -> None:
    own = f"coilc.{layer_of(path)}"
    for line, name in imports(ast.parse(path.read_text())):
        inside = name == own or name.startswith(own + ".")
        assert not inside, f"{path.relative_to(ROOT)}:{line}: write a relative import instead of '{name}'"


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_linked_into_the_package(folder: str) -> None:
    link = PACKAGE / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{folder}"


def test_the_package_list_equals_the_folders() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    bases = [(PACKAGE, "coilc"), *((ROOT / f, f"coilc.{f}") for f in FOLDERS)]
    found = {
        ".".join((name, *init.parent.relative_to(base).parts))
        for base, name in bases
        for init in base.rglob("__init__.py")
        if not (base == PACKAGE and init.relative_to(base).parts[0] in FOLDERS)
    }
    assert set(declared) == found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_that_is_not_python_is_packaged(folder: str) -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for path in (ROOT / folder).rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            package = next(parent for parent in path.parents if (parent / "__init__.py").exists())
            inside = path.relative_to(package)
            assert any(inside.match(p) and len(inside.parts) == p.count("/") + 1 for p in patterns), (
                f"{path} is left out"
            )


PROJECT_FILES = [p for f in (*FOLDERS, "tests", "examples", "benchmarks") for p in sources(ROOT / f)] + [
    p for p in sources(PACKAGE) if p.relative_to(PACKAGE).parts[0] not in FOLDERS
]


@pytest.mark.parametrize("path", PROJECT_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_named_for_what_they_hold(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}
    lines = path.read_text().count("\n")
    assert lines <= LONGEST_FILE, f"{path.relative_to(ROOT)} has {lines} lines; split it by idea"


@pytest.mark.parametrize("module", ["coilc", "coilc.runtime", "coilc.cli"])
def test_importing_is_light(module: str) -> None:
    heavy = "torch tvm onnx transformers matplotlib networkx"
    program = f"import sys, {module}; print(*[m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert not done.stdout.split(), f"import {module} loads {done.stdout.strip()}"
