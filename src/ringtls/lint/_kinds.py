"""What an expression is known to be (rules 2 and 3)."""

from __future__ import annotations

import ast
from typing import NamedTuple

from ._scopes import Binding, Module, Origin
from ._tables import DESTRUCTOR, ITEMS, LISTENERS, MAKERS, TYPES, Kind

__all__ = ["Kinds"]


class Known(NamedTuple):
    """What is known of a value: its kind, and its class, if that is a destructor of this module."""

    kind: Kind | None
    cls: ast.ClassDef | None = None


NOTHING = Known(None)


class Kinds:
    """The kinds of a module's expressions."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._known: dict[ast.expr, Known] = {}

    def dotted(self, expression: ast.expr) -> str:
        """What an expression of the module names, as "ringtls.TlsStream"; or ""."""
        return self._module.dotted(expression, self._module.scopes[expression])

    def of(self, expression: ast.expr) -> Kind | None:
        return self._know(expression).kind

    def class_of(self, expression: ast.expr) -> ast.ClassDef | None:
        """The subclass of AsyncDestructor, of this module, that an expression is a value of."""
        return self._know(expression).cls

    def is_destructor(self, cls: ast.ClassDef) -> bool:
        waiting, seen = [cls], {cls}
        while waiting:
            for base in waiting.pop().bases:
                if self.dotted(base) == DESTRUCTOR:
                    return True
                definition = self._module.definition(base)
                if isinstance(definition, ast.ClassDef) and definition not in seen:
                    seen.add(definition)
                    waiting.append(definition)
        return False

    def _know(self, expression: ast.expr) -> Known:
        if expression not in self._known:
            self._known[expression] = NOTHING  # for what is bound to itself
            self._known[expression] = self._find(expression)
        return self._known[expression]

    def _find(self, expression: ast.expr) -> Known:
        match expression:
            case ast.Await(value=ast.Call(func=ast.Attribute(value=listener, attr="accept"))):
                kind = self.of(listener)
                return Known(LISTENERS.get(kind) if kind else None)
            case ast.Await(value=ast.Call(func=function)) | ast.Call(func=function):
                made_of = self._destructor(function)
                if made_of is not None and isinstance(expression, ast.Call):
                    return Known(Kind.DESTRUCTOR, made_of)
                kind, is_async = MAKERS.get(self.dotted(function), (None, False))
                return Known(kind) if is_async is isinstance(expression, ast.Await) else NOTHING
            case ast.NamedExpr(value=value):
                return self._know(value)
            case ast.Subscript(value=items):
                return self._of_item(items)
            case ast.Name(id=name):
                bindings = self._module.bindings(name, self._module.scopes[expression])
                known = {self._of_bound(binding) for binding in bindings}
                if len(known) == 1:
                    return known.pop()
        return NOTHING

    def _of_item(self, items: ast.expr) -> Known:
        kind = self.of(items)
        return NOTHING if kind is None else Known(ITEMS.get(kind))

    def _of_bound(self, binding: Binding) -> Known:
        match binding:
            case Binding(Origin.VALUE | Origin.ENTERED, ast.expr() as value):
                return self._know(value)
            case Binding(Origin.ITEM, ast.expr() as items):
                return self._of_item(items)
            case Binding(Origin.ANNOTATED, ast.expr() as annotation):
                known = self._of_annotation(annotation)
                is_known = known.kind and not self._may_be_a_face(annotation, known.kind)
                return known if is_known else NOTHING
        return NOTHING

    def _may_be_a_face(self, annotation: ast.expr, kind: Kind) -> bool:
        """Is it of a parameter for which blocking.call() may pass something else?"""
        parameter = self._module.parents[annotation]
        if not kind.is_blocking or not isinstance(parameter, ast.arg):
            return False
        function = self._module.parents[self._module.parents[parameter]]
        return isinstance(function, ast.AsyncFunctionDef)

    def _of_annotation(self, annotation: ast.expr) -> Known:
        scope = self._module.scopes[annotation]
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval").body
            except SyntaxError:
                return NOTHING
        if isinstance(annotation, ast.Subscript):  # TlsStream[SocketStream]
            annotation = annotation.value
        cls = self._destructor(annotation) if annotation in self._module.scopes else None
        if cls is not None:
            return Known(Kind.DESTRUCTOR, cls)
        return Known(TYPES.get(self._module.dotted(annotation, scope)))

    def _destructor(self, expression: ast.expr) -> ast.ClassDef | None:
        """The subclass of AsyncDestructor, of this module, that an expression names."""
        definition = self._module.definition(expression)
        if isinstance(definition, ast.ClassDef) and self.is_destructor(definition):
            return definition
        return None
