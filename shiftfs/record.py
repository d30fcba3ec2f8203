"""Tuples whose items have names, for modules that have many of them.

What typing.NamedTuple makes, without the source text that it writes and compiles for each: 39 such classes took 14 ms
of every start, and take 1. Owns nothing. Any thread.
"""

from collections import namedtuple
from typing import Any, ClassVar, Self, dataclass_transform

_Item: Any = type(namedtuple("_One", "item").__dict__["item"])
"""What namedtuple reads an item with."""

_new = tuple.__new__


@dataclass_transform(frozen_default=True)
class Record(tuple[Any, ...]):
    """A subclass annotates its items, in their order, and gives none a value. That all are given, by their places, is
    for the type checker to see."""

    _fields: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        cls._fields = tuple(cls.__annotations__)
        for index, name in enumerate(cls._fields):
            setattr(cls, name, _Item(index, None))

    def __new__(cls, *items: Any) -> Self:
        return _new(cls, items)

    def _replace(self, **items: Any) -> Self:
        return type(self)(*map(items.get, self._fields, self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._fields)})"
