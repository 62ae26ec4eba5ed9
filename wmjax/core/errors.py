"""The exception for bad input, which a command prints as one line; every other exception is a bug."""

import difflib
from collections.abc import Iterable

LONGEST = 1400
"""Characters of a message; a value in it, or what another library said, may be of any length."""


class UserError(Exception):
    """Bad input, in one line that names the field, its value and the fix.

    Commands print it as ``error: <message>`` and exit with status 2, without a traceback. Of a message beyond
    :data:`LONGEST` characters the middle is left out: the field is at the beginning, the fix at the end.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines()) if "\n" in message or "\r" in message else message
        third = LONGEST // 3
        super().__init__(line if len(line) <= LONGEST else f"{line[: 2 * third - 5]} ... {line[-third:]}")


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Another library's error message as one short line, for use in our messages."""
    return " ".join(str(error).split())[:limit]


def require_unicode(text: str, what: str) -> None:
    """Refuses a text with an unpaired surrogate, which JSON allows but no file, page or tokenizer accepts.

    Raises:
        UserError: begins with ``what``.

    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{what} is {text!r}, which is not Unicode text; write it again")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest names that do."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
