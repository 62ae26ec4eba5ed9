"""Lists of protocols: one evaluation command for several suites, such as the 16 cells of LIBERO-PRO.

A list is a file beside the protocols with the single key ``protocols``: names, or paths ending in ``.toml`` relative to
the list. Each protocol of a list is called a cell. It is evaluated as if it were given alone.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import Settings, build
from wmjax.rollout.protocol import (
    LIST_KEY,
    Protocol,
    changed_parts,
    load_protocol,
    protocol_folder,
    protocol_names,
    read_protocol,
)


@dataclasses.dataclass(frozen=True)
class _ListFile(Settings, section="list"):
    """The file of a list."""

    protocols: tuple[str, ...]


class Cell(NamedTuple):
    """One protocol, in a list or alone: as it is run, and as its file defines it."""

    protocol: Protocol
    unchanged: Protocol

    def folder(self, root: Path) -> Path:
        """The evaluation's folder below ``root``, the same as without a list."""
        return protocol_folder(root, self.protocol, self.unchanged)


@dataclasses.dataclass(frozen=True)
class ProtocolList:
    """Several protocols under one name.

    Attributes:
        name: of the list's file.
        cells: in the order of the file.

    """

    name: str
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        """The name with what was changed in any cell, such as ``pro_all-n2``."""
        return "-".join([self.name, *dict.fromkeys(part for cell in self.cells for part in changed_parts(*cell))])


def load_protocol_list(name: str, **changes: Any) -> ProtocolList | None:
    """Reads a list by name, or from a path ending in ``.toml``; None if that is a protocol.

    Args:
        name: such as ``pro_all``.
        changes: fields to replace in every cell; None leaves a field as it is.

    Raises:
        UserError: an empty list, one with other keys, an unknown or repeated cell, a list in the list, another suite
            for all cells, or a change that does not fit a cell.

    """
    path, values = read_protocol(name)
    if LIST_KEY not in values:
        return None
    try:
        names = _cell_names(path, values)
    except UserError as error:
        raise UserError(f"{path}: {error}; correct the file") from error
    if changes.get("suite") is not None:
        raise UserError(
            f"suite is {changes['suite']!r} with the list {path.stem}, whose protocols have their own suites; leave "
            "--suite out"
        )
    return ProtocolList(path.stem, tuple(Cell(load_protocol(cell, **changes), load_protocol(cell)) for cell in names))


def _cell_names(path: Path, values: dict[str, Any]) -> list[str]:
    """The cells of a list, each the name of a protocol or a path.

    Raises:
        UserError: see :func:`load_protocol_list`.

    """
    named = build(_ListFile, values, "").protocols
    if not named:
        raise UserError(f"{LIST_KEY} is empty; name at least one protocol")
    found = []
    for name in named:
        cell = str(path.parent / name) if name.endswith(".toml") else name
        if name.endswith(".toml") and not Path(cell).is_file():
            raise UserError(f"{LIST_KEY} names {name!r}, but {cell} is not a file")
        if name not in protocol_names() and not name.endswith(".toml"):
            raise unknown_name("protocol", name, protocol_names())
        if LIST_KEY in read_protocol(cell)[1]:
            raise UserError(f"{LIST_KEY} names {name!r}, which is a list itself; name its protocols")
        found.append(cell)
    stems = [Path(name).name.removesuffix(".toml") for name in named]
    if doubled := [stem for stem in dict.fromkeys(stems) if stems.count(stem) > 1]:
        raise UserError(f"{LIST_KEY} names {doubled[0]!r} more than once; name each protocol once")
    return found
