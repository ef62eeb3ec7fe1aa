"""What the functions and methods of a module do with what they get: use it, or more.

Rule 1 holds here, too: what is not understood may do anything with it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from ._kinds import Kinds
from ._scopes import Function, Module
from ._tables import (
    CALLERS,
    CLOSERS,
    DESTRUCTOR,
    HARMLESS,
    HARMLESS_OF_DESTRUCTORS,
    KNOWN_BASES,
    KNOWN_DECORATORS,
    MADE_BY,
    STARTERS,
)

__all__ = ["Lending"]


class Lending:
    """Tells who only uses what it is lent."""

    def __init__(self, module: Module, kinds: Kinds) -> None:
        self._module = module
        self._kinds = kinds
        #: The functions, and their parameters, that are being looked into: they may be recursive.
        self._asked: set[tuple[Function, int]] = set()

    def is_harmless_attribute(self, attribute: str, cls: ast.ClassDef | None) -> bool:
        """Is a use of it nothing by which something is closed or handed on?

        Args:
          cls: the class, if it is one of this module; a stream's otherwise.
        """
        if cls is None:
            return attribute in HARMLESS or attribute.startswith("start_")
        if attribute in HARMLESS_OF_DESTRUCTORS:
            return True
        classes = self._classes(cls)
        if classes is None or attribute in CLOSERS:
            return False
        return all(self._is_harmless_method(each, cls) for each in _methods(classes, attribute))

    def keeps_when_made(self, cls: ast.ClassDef) -> bool:
        """May the class have somebody else see to the end of its values?"""
        return not all(self.is_harmless_attribute(name, cls) for name in MADE_BY)

    def may_have(self, cls: ast.ClassDef, name: str) -> bool:
        """May a value of the class have an attribute that AsyncDestructor does not bring along?"""
        classes = self._classes(cls)
        return classes is None or any(
            name in self._module.inner_scope(each).bindings for each in classes
        )

    def is_lent(self, argument: ast.expr, is_harmless: Callable[[ast.Name], bool]) -> bool:
        """Is it passed to a function of this module that only uses it?

        Args:
          is_harmless: what is to be found of each use in that function.
        """
        call = self._module.parents[argument]
        if not isinstance(call, ast.Call) or argument not in call.args:
            return False
        passed = [call.func, *call.args]
        if self._calls_another(call.func):
            del passed[0]
        function = self._module.definition(passed[0])
        position = passed.index(argument) - 1
        if isinstance(function, ast.ClassDef) or function is None:
            return False
        parameters = [*function.args.posonlyargs, *function.args.args]
        if not 0 <= position < len(parameters) or function.decorator_list:
            return False
        if any(isinstance(each, ast.Starred) for each in call.args):
            return False
        name = parameters[position].arg
        scope = self._module.inner_scope(function)
        if len(scope.bindings[name]) > 1 or self._module.is_shared(name, scope):
            return False
        if (function, position) in self._asked:
            return True
        self._asked.add((function, position))
        try:
            return all(is_harmless(use) for use in self._module.uses(name, scope))
        finally:
            self._asked.discard((function, position))

    def _calls_another(self, function: ast.expr) -> bool:
        """Does it call its first argument, with those that follow?"""
        is_starter = isinstance(function, ast.Attribute) and function.attr in STARTERS
        return is_starter or self._kinds.dotted(function) in CALLERS

    def _classes(self, cls: ast.ClassDef) -> list[ast.ClassDef] | None:
        """The class and its bases of this module; None if it has others that are not known."""
        classes, waiting = [], [cls]
        while waiting:
            each = waiting.pop()
            if each in classes:
                continue
            classes.append(each)
            for decorator in each.decorator_list:
                name = decorator.func if isinstance(decorator, ast.Call) else decorator
                if self._kinds.dotted(name) not in KNOWN_DECORATORS:
                    return None
            for base in each.bases:
                definition = self._module.definition(base)
                if isinstance(definition, ast.ClassDef):
                    waiting.append(definition)
                    continue
                named = base.value if isinstance(base, ast.Subscript) else base
                if self._kinds.dotted(named) not in {DESTRUCTOR, *KNOWN_BASES}:
                    return None
        return classes

    def _is_harmless_method(self, method: Function, cls: ast.ClassDef) -> bool:
        parameters = [*method.args.posonlyargs, *method.args.args]
        if (method, 0) in self._asked or not parameters:
            return True
        name, scope = parameters[0].arg, self._module.inner_scope(method)
        self._asked.add((method, 0))
        try:
            return all(self._is_attribute(use, cls) for use in self._module.uses(name, scope))
        finally:
            self._asked.discard((method, 0))

    def _is_attribute(self, use: ast.Name, cls: ast.ClassDef) -> bool:
        parent = self._module.parents[use]
        return isinstance(parent, ast.Attribute) and self.is_harmless_attribute(parent.attr, cls)


def _methods(classes: list[ast.ClassDef], name: str) -> Iterator[Function]:
    for cls in classes:
        for each in cls.body:
            if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)) and each.name == name:
                yield each
