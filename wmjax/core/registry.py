"""Implementations that a setting chooses: by a registered name, or from any package as ``package.module:Class``."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from wmjax.core.errors import UserError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """The classes that one setting may name. A class is imported only when it is requested.

    Attributes:
        setting: the setting's dotted name, for errors.
        known: the registered names and where their classes are, ``package.module:Class``.
        base: the class of which they are subclasses; None where any class with the right methods will do.

    """

    def __init__(self, setting: str, known: Mapping[str, str], base: type[T] | None = None) -> None:
        self.setting, self.known, self.base = setting, dict(known), base

    def resolve(self, name: str) -> type[T]:
        """The class that a registered name or a ``package.module:Class`` refers to.

        Raises:
            UserError: no such name, module or class, the module cannot be imported, or the class is not a subclass of
                ``base`` with all of its methods.

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
        except Exception as error:  # a module of somebody else's, which may raise anything
            why = str(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
            why = " ".join(why.split())
            raise UserError(
                f"{self.setting} is {name!r}, which cannot be imported ({why}); give package.module:Class of an "
                "installed package, or put its folder on PYTHONPATH"
            ) from error
        if not isinstance(found, type):
            raise UserError(f"{self.setting} is {name!r}, a {type(found).__name__}; give the name of a class")
        if self.base is not None:
            self._require_subclass(name, found, self.base)
        return found

    def _require_subclass(self, name: str, found: type, base: type) -> None:
        place = f"{base.__module__}.{base.__qualname__}"
        if not issubclass(found, base):
            raise UserError(f"{self.setting} is {name!r}, which is not a subclass of {place}; make it one")
        if inspect.isabstract(found):
            lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
            raise UserError(f"{self.setting} is {name!r}, which lacks {lacking} of {place}; give it these methods")
