"""Implementations that a setting chooses: by a registered name, or from any package as ``package.module:Class``."""

import importlib
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from wmjax.core.errors import UserError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """The classes that one setting may name. A class is imported when it is asked for, not before.

    Attributes:
        setting: the setting's dotted name, for errors.
        known: the registered names and where their classes are, ``package.module:Class``.

    """

    def __init__(self, setting: str, known: Mapping[str, str]) -> None:
        self.setting, self.known = setting, dict(known)

    def resolve(self, name: str) -> type[T]:
        """The class that a registered name or a ``package.module:Class`` stands for.

        Raises:
            UserError: no such name, module or class, or the module cannot be imported.

        """
        if not isinstance(name, str):
            raise UserError(f"{self.setting} is {name!r}; give one of {', '.join(sorted(self.known))}")
        place = self.known.get(name, name)
        module, colon, attribute = place.partition(":")
        if not colon:
            known = unknown_name(self.setting, name, self.known)
            raise UserError(f"{known}; a class of your own is written package.module:Class")
        try:
            found: Any = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.setting} is {name!r}, which cannot be imported ({error}); give package.module:Class of an "
                "installed package, or put its folder on PYTHONPATH"
            ) from error
        if not isinstance(found, type):
            raise UserError(f"{self.setting} is {name!r}, a {type(found).__name__}; give the name of a class")
        return found
