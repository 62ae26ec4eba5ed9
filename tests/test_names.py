"""Names that nothing defines: the linters cannot look for them, because jaxtyping's shapes look like names to them."""

import builtins
import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("wmjax", "encoders_export", "benchmarks", "tests")
IMPLICIT = {*dir(builtins), "__file__", "__name__", "__doc__", "__path__"}


def tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from tables(child)


def undefined(source: str, name: str) -> set[str]:
    """Global names that a module reads and never binds; annotations in quotes are not looked into."""
    top = symtable.symtable(source, name, "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    bound |= {s.get_name() for t in tables(top) for s in t.get_symbols() if s.is_declared_global()}
    read = {s.get_name() for t in tables(top) for s in t.get_symbols() if s.is_referenced() and s.is_global()}
    read |= {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    return read - bound - IMPLICIT


def test_a_name_that_nothing_defines_is_found() -> None:
    source = (
        "import a\ndef f(x: 'b c'):\n    from d import e\n    return [a, x, e, g, len(x), h] + [i for i in x]\nh = 1\n"
    )
    assert undefined(source, "module") == {"g"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_name_is_defined(folder: str) -> None:
    found = {
        str(path.relative_to(ROOT)): undefined(path.read_text(), path.name) for path in (ROOT / folder).rglob("*.py")
    }
    assert {path: names for path, names in found.items() if names} == {}
