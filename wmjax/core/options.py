"""The options of commands. Every setting is spelled ``--section.name VALUE``; some also have a short option.

Options without a section are a command's own: what it works on and where it writes, such as ``--run`` and ``--out``.
They set nothing of an experiment, a protocol or a store.

A short option is documented in ``--help`` with the setting that it sets, and the value goes the same way: it is
read as TOML, converted to the field's type, and checked against the range that the field declares.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import merge, nested, parse_overrides, parse_value, type_hints


def number_list(text: str) -> tuple[int, ...]:
    """Numbers from a text such as ``0,1``, or ``none``.

    Raises:
        UserError: the text is not a list of numbers.

    """
    try:
        return () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{text!r} is not a list of numbers; write them as 0,1") from None


@dataclasses.dataclass(frozen=True)
class Short:
    """A short option for a setting.

    Attributes:
        setting: its dotted name in the section.
        help: what it is.
        read: from the text of the command line to a plain value.
        flag: whether the option takes no value, and means true.
        words: whether it takes several values, or is given several times.

    """

    setting: str
    help: str
    read: Callable[[str], Any] = parse_value
    flag: bool = False
    words: bool = False


class CommandParser(argparse.ArgumentParser):
    """A command's options, described by its module's docstring. An argument that cannot be parsed is a one-line error.

    Args:
        command: its name, such as ``record``.
        description: the docstring.
        package: of the command's module.

    """

    def __init__(self, command: str, description: str | None, package: str = "wmjax") -> None:
        super().__init__(
            prog=f"python -m {package}.{command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._sections: dict[str, Mapping[str, Short]] = {}

    def error(self, message: str) -> NoReturn:
        """Refuses arguments that cannot be parsed.

        Raises:
            UserError: always.

        """
        raise UserError(f"{message}; {self.prog} --help lists the options")

    def add_settings(self, section: str, shorts: Mapping[str, Short], defaults: object = None) -> None:
        """Takes the settings of a section, and the short options of some.

        Args:
            section: its name.
            shorts: by option, without the dashes.
            defaults: the settings, or their class, whose values the help shows; None shows none.

        """
        self._sections[section] = shorts
        group = self.add_argument_group(f"settings, --{section}.NAME VALUE", _describe(section, shorts, defaults))
        for name, short in shorts.items():
            kind: dict[str, Any] = {"type": short.read, "metavar": name.upper().replace("-", "_")}
            if short.flag:
                kind = {"action": "store_const", "const": True}
            elif short.words:
                kind |= {"action": "extend", "nargs": "+"}
            group.add_argument(f"--{name}", dest=f"{section}.{name}", help=_help(section, short, defaults), **kind)

    def add_sections(self, sections: Iterable[str]) -> None:
        """Takes the settings of several sections by their full names, and by the short options added elsewhere."""
        names = list(sections)
        self._sections = {name: {} for name in names} | self._sections
        text = f"Every setting of the sections {', '.join(names)} can be given, such as --train.steps 500."
        self.add_argument_group("settings, --SECTION.NAME VALUE", text)

    def read(self, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
        """The options of the command itself, and the settings of each section as nested plain values.

        Raises:
            UserError: an unknown option or setting, or one without a value.

        """
        words, settings = _split(sys.argv[1:] if arguments is None else arguments)
        options, unknown = self.parse_known_args(words)
        if unknown:
            raise self._refusal(unknown[0])
        values: dict[str, Any] = {section: {} for section in self._sections}
        for section, shorts in self._sections.items():
            for name, short in shorts.items():
                given = vars(options).pop(f"{section}.{name}")
                if given is not None:
                    values = merge(values, nested(f"{section}.{short.setting}", given))
        return options, merge(values, self._settings(settings))

    def _settings(self, words: list[str]) -> dict[str, Any]:
        """The settings that were given by their full names."""
        values = parse_overrides(words)
        for name in values:
            if not self._sections:
                raise self._refusal(f"--{name}")
            if name not in self._sections:
                raise unknown_name("section of settings", name, self._sections)
        return values

    def _refusal(self, word: str) -> UserError:
        if not word.startswith("-"):
            return UserError(f"unexpected argument {word!r}; {self.prog} --help lists the options")
        return unknown_name("option", word.partition("=")[0], self._option_string_actions)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of the command itself, and its settings, each with its value as ``--section.name=VALUE``."""
    words: list[str] = []
    settings: list[str] = []
    pending = list(arguments)
    while pending:
        word = pending.pop(0)
        name, equals, _ = word.partition("=")
        if not name.startswith("--") or "." not in name:
            words.append(word)
        elif equals:
            settings.append(word)
        elif pending and not pending[0].startswith("--"):
            settings.append(f"{word}={pending.pop(0)}")
        else:
            raise UserError(f"{word} has no value; write {word} VALUE")
    return words, settings


def _describe(section: str, shorts: Mapping[str, Short], defaults: Any) -> str:
    """Describes the options of a section, and lists the settings without one."""
    if not shorts:
        return "None of these settings has a short option."
    known = {short.setting for short in shorts.values()}
    others = [] if defaults is None else [name for name in setting_names(defaults) if name not in known]
    more = f" Others are {', '.join(f'--{section}.{name}' for name in others)}." if others else ""
    return f"An option below sets the setting in its brackets.{more}"


def setting_names(settings: Any) -> Iterator[str]:
    """The dotted names of all settings of a dataclass, or of an instance."""
    hints = type_hints(settings if isinstance(settings, type) else type(settings))
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(hint := hints[field.name]):
            yield from (f"{field.name}.{name}" for name in setting_names(hint))
        else:
            yield field.name


def _help(section: str, short: Short, defaults: object) -> str:
    """An option's help, with the setting that it sets and its default."""
    if short.help == argparse.SUPPRESS:
        return short.help
    value = defaults
    for name in short.setting.split("."):
        value = getattr(value, name, None)
    if isinstance(value, tuple):
        value = ",".join(map(str, value)) or None
    default = "" if value is None or isinstance(value, bool) else f"; default {value}"
    return f"{short.help} [--{section}.{short.setting}{default}]".replace("%", "%%")
