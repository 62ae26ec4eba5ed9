"""The evaluation of a list of protocols: each cell as a separate evaluation, and one table of all."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wmjax.analysis.summary import Summary, summarize
from wmjax.reporting.evaluation_page import REPORT
from wmjax.reporting.list_table import CellResult, ListTable
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.protocol_list import Cell, ProtocolList
from wmjax.rollout.results import differences, read_header, read_records

log = logging.getLogger("wmjax.evaluate")


def evaluate_list(
    chosen: ProtocolList,
    root: Path,
    identity: Mapping[str, Any],
    evaluate_cell: Callable[[Protocol, Path], Summary],
) -> ListTable:
    """Evaluates the cells that have not finished, one after the other, and writes the table after each.

    Args:
        chosen: the list.
        root: folder of the evaluations, one each, and of the table.
        identity: header fields that identify the actor.
        evaluate_cell: runs what is left of one evaluation in a folder.

    Raises:
        UserError: see :func:`wmjax.pipeline.evaluate.evaluate`.

    """
    results = [_result(cell, root, identity) for cell in chosen.cells]
    for number, (cell, result) in enumerate(zip(chosen.cells, results, strict=True)):
        where = f"{number + 1} of {len(results)}, {cell.protocol.name}"
        if result.complete:
            log.info("%s: finished before, in %s", where, result.folder)
            continue
        log.info("%s", where)
        results[number] = dataclasses.replace(result, summary=evaluate_cell(cell.protocol, result.folder))
        ListTable(chosen.label, results).write(root)
    # Other shards may have finished cells meanwhile.
    last = [
        r if r.complete else _latest(r, cell, root, identity) for r, cell in zip(results, chosen.cells, strict=True)
    ]
    table = ListTable(chosen.label, last)
    table.write(root)
    return table


def _latest(result: CellResult, cell: Cell, root: Path, identity: Mapping[str, Any]) -> CellResult:
    """A cell as it is now on disk if it is complete there, else as it was."""
    found = _result(cell, root, identity)
    return found if found.complete else result


def _result(cell: Cell, root: Path, identity: Mapping[str, Any]) -> CellResult:
    """A cell with the verdict of its evaluation, if that has finished."""
    protocol, folder = cell.protocol, cell.folder(root)
    return CellResult(
        protocol.name, protocol.suite, folder, len(protocol.episodes()), _finished(folder, protocol, identity)
    )


def _finished(folder: Path, protocol: Protocol, identity: Mapping[str, Any]) -> Summary | None:
    """The verdict of an evaluation whose report is written; None if there is none, or if it is another one.

    Raises:
        UserError: its files are damaged.

    """
    if not (folder / REPORT).is_file():
        return None
    expected = json.loads(json.dumps({**identity, "protocol": dataclasses.asdict(protocol)}))
    header = read_header(folder)
    if differences({key: header.get(key) for key in expected}, expected):
        return None  # the evaluation says what differs
    records = read_records(folder, torn=True)
    missing = {episode.key for episode in protocol.episodes()} - {record.key for record in records}
    return None if missing else summarize(records)
