"""The implementation of the compare command: it compares the given evaluations and returns the result as text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmjax.analysis.comparison import compare, compare_unpaired
from wmjax.analysis.overview import overview
from wmjax.analysis.seeds import compare_seeds
from wmjax.analysis.sequential import StoppingRule
from wmjax.core.errors import UserError
from wmjax.core.options import Short
from wmjax.core.settings import build
from wmjax.pipeline.until_decided import compare_until_decided
from wmjax.rollout.protocol import load_protocol

SHORTS = {
    "effect": Short("effect", "the difference in success rates that is to be found"),
    "alpha": Short("alpha", "the risk of a false claim"),
    "beta": Short("beta", "the risk of missing the effect"),
}
"""The settings of :class:`wmjax.analysis.sequential.StoppingRule` that have a short option, by option."""


def run_comparison(
    settings: Mapping[str, Mapping[str, Any]],
    *,
    folders: Sequence[Path],
    a: Sequence[Path],
    b: Sequence[Path],
    unpaired: bool,
    until: str | None,
    protocol: str,
) -> str:
    """Compares, and returns the table or the line.

    Args:
        settings: of the sections ``rule`` and ``protocol``, for a comparison that runs episodes.
        folders: of two results or more, the baseline's first; with ``until`` of two runs.
        a: one folder of the baseline per training seed.
        b: one folder of the other system per training seed.
        unpaired: whether the episodes of two results differ.
        until: None, or ``decided`` to run episodes of both sides until the difference is decided.
        protocol: a name, or a path ending in ``.toml``; whose episodes are run.

    Raises:
        UserError: options that do not belong together, or folders that cannot be compared.

    """
    two, systems = len(folders) == 2 and not (a or b), bool(a and b)
    given = [f"--{section}.{name}" for section, values in settings.items() for name in values]
    if until and (two or systems) and not (systems and folders):
        sides = ([folders[0]], [folders[1]]) if two else (a, b)
        rule = build(StoppingRule, dict(settings["rule"]), "rule.")
        return compare_until_decided(*sides, load_protocol(protocol, **settings["protocol"]), rule).line()
    if given or until or (unpaired and not two):
        raise UserError(f"{' '.join(given) or '--until or --unpaired'}: give two folders, or --a and --b with --until")
    if systems and not folders:
        return compare_seeds(a, b).table()
    if two:
        return compare_unpaired(*folders) if unpaired else compare(*folders).table()
    if len(folders) > 2 and not (a or b):
        return overview(folders[0], folders[1:]).table()
    raise UserError("give two results folders or more, or --a and --b with one folder per training seed each")
