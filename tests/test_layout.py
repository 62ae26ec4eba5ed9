"""The layout that docs/concepts.md describes: commands at the top, one folder per concept, no import circles."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wmjax"
COMMAND_LINES = 60
"""A command parses, calls and prints."""


def imported_modules(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, wherever in the file, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("wmjax."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wmjax":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if _file(full).exists() else str(node.module)


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def folder(path: Path) -> str:
    return path.parent.relative_to(ROOT).as_posix()


def arrows() -> dict[str, set[str]]:
    """For every folder, the other folders whose modules its modules import."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        targets = {folder(_file(module)) for module in imported_modules(path)}
        if path != PACKAGE / "__init__.py":  # resolves public names on first use, and so names modules of all folders
            found.setdefault(folder(path), set()).update(targets - {folder(path)})
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Folders that import each other in a circle; empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_folders_do_not_import_each_other_in_circles() -> None:
    assert circle(arrows()) == []


def test_no_module_imports_a_command() -> None:
    commands = {f"wmjax.{path.stem}" for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    for path in PACKAGE.rglob("*.py"):
        assert not commands & set(imported_modules(path)), path


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_commands_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= COMMAND_LINES


def private_names(tree: ast.AST) -> Iterator[str]:
    """Names with a leading underscore that ``setattr`` replaces, or that are imported from one of our modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            names = [word.value for word in node.args[:2] if isinstance(word, ast.Constant)]
            yield from (str(name) for name in names if _is_private(str(name)))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("wmjax", "encoders_export"):
            yield from (alias.name for alias in node.names if _is_private(alias.name))


def _is_private(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.startswith("_") and not last.endswith("__")


def test_a_private_name_is_found() -> None:
    source = """
from wmjax.a import _b, c
patch.setattr(module, "_d", 1)
monkeypatch.setattr("wmjax.a._e", 1)
monkeypatch.setattr(Policy, "__call__", 1)
monkeypatch.setattr(module, "f", "_g")
"""
    assert list(private_names(ast.parse(source))) == ["_b", "_d", "wmjax.a._e"]


def test_tests_patch_and_import_public_names_only() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not list(private_names(ast.parse(path.read_text(encoding="utf-8")))), path
