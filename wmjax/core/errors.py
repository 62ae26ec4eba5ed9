"""The exception for bad input, which a command prints as one line; every other exception is a bug."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, in one line that names the field, its value and the fix.

    Commands print it as ``error: <message>`` and exit with status 2, without a traceback.
    """


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """What another library said, as one short line for a message of ours."""
    return " ".join(str(error).split())[:limit]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest names that do."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
