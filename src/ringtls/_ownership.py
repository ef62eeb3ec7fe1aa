"""Which attributes of a value are its own, and so are closed after its adestroy() (rule A3).

1. Those that are async resources, in the order in which they were first assigned. Those that were
   assigned past the class, as a frozen dataclass does, come last.
2. What is marked by borrowed() is somebody else's, in whatever attribute it is, then and later. The
   mark is taken off where it is assigned, or passed to the constructor: nobody else sees it.
   Remembering that does not keep alive what the attributes have let go of. What they hold is held
   here as well: where all are dropped in one reference cycle, weak references are cleared first.
3. Attributes are where Python keeps them, in slots and in ``__dict__``. Looking there runs no code
   of the class.
"""

from __future__ import annotations

from contextlib import suppress
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar
from weakref import ref

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RECORD", "Ownership", "attributes", "borrowed"]

T = TypeVar("T")

#: The slot of AsyncDestructor itself.
RECORD = "_AsyncDestructor__destruction"


class _Borrowed:
    """What borrowed() hands to an attribute, or to a constructor."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def borrowed(value: T) -> T:
    """Mark what an AsyncDestructor uses and does not own: ``self.stream = borrowed(stream)``.

    To be assigned to an attribute of an AsyncDestructor, or passed to its constructor, which both
    get ``value`` itself. It is then not closed by that object, whatever attribute it is in.
    """
    return _Borrowed(value)  # type: ignore[return-value]


class Ownership:
    """What is known of the attributes of one value."""

    __slots__ = ("_borrowed", "_lent", "_let_go", "_order")

    def __init__(self) -> None:
        self._order: dict[str, None] = {}  # of attributes, as they were first assigned
        self._borrowed: dict[str, object] = {}  # by the attribute that it was assigned to
        self._lent: list[object] = []  # to the constructor, and not assigned yet
        self._let_go: list[Callable[[], object]] = []  # by an attribute that it was assigned to

    def assigned(self, name: str, value: object) -> object:
        """Note that an attribute is assigned; returns what it is to hold."""
        self._order[name] = None
        is_lent = _is_among(self._lent, value)
        if type(value) is _Borrowed:
            value, is_lent = value.value, True
        if name in self._borrowed and self._borrowed[name] is not value:
            self._let_go_of(name)
        if is_lent:
            self._borrowed[name] = value
            self._lent = [each for each in self._lent if each is not value]
        return value

    def deleted(self, name: str) -> None:
        """Note that an attribute is deleted."""
        if name in self._borrowed:
            self._let_go_of(name)

    def _let_go_of(self, name: str) -> None:
        """Rule 2: the attribute gets another value, or none."""
        value = self._borrowed[name]
        still_known = [each for each in self._let_go if not _is_among([None, value], each())]
        self._let_go = [*still_known, _weak(value)]
        del self._borrowed[name]

    def lend(self, argument: Any) -> Any:
        """What a constructor gets as its argument: borrowed() does not show there."""
        if type(argument) is not _Borrowed:
            return argument
        self._lent.append(argument.value)
        return argument.value

    def of(self, value: object) -> list[trio.abc.AsyncResource]:
        """The async resources among the attributes, once each, in the order of rule 1."""
        held = attributes(value)
        names = [name for name in self._order if name in held]
        names += [name for name in held if name not in self._order]
        spared = [value, *self._lent, *self._borrowed.values(), *(each() for each in self._let_go)]
        resources: list[trio.abc.AsyncResource] = []
        for name in names:
            resource = held[name]
            if _is_resource(resource) and not _is_among(spared, resource):
                resources.append(resource)
                spared.append(resource)
        return resources


def _is_among(values: list[object], value: object) -> bool:
    """True if it is one of these; what equals one is another."""
    return any(value is each for each in values)


def _weak(value: object) -> Callable[[], object]:
    """A weak reference, if there can be one."""
    try:
        return ref(value)
    except TypeError:
        return lambda: value


def attributes(value: object) -> dict[str, object]:
    """What the value holds: in slots, those of its bases first, and in its ``__dict__``."""
    held: dict[str, object] = {}
    for cls in reversed(type(value).__mro__):
        for name, member in vars(cls).items():
            if isinstance(member, MemberDescriptorType) and name != RECORD:
                with suppress(AttributeError):  # nothing was assigned
                    held[name] = member.__get__(value)
    with suppress(AttributeError):  # it has slots only
        held.update(object.__getattribute__(value, "__dict__"))
    return held


def _is_resource(value: object) -> TypeGuard[trio.abc.AsyncResource]:
    try:
        return callable(getattr(type(value), "aclose", None))
    except Exception:  # by the __getattr__ of a metaclass
        return False
