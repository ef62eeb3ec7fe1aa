"""What an expression is known to be (rules 2 and 3)."""

from __future__ import annotations

import ast

from ._scopes import Binding, Module, Origin
from ._tables import DESTRUCTOR, ITEMS, LISTENERS, MAKERS, TYPES, Kind

__all__ = ["Kinds"]


class Kinds:
    """The kinds of a module's expressions."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._known: dict[ast.expr, Kind | None] = {}

    def dotted(self, expression: ast.expr) -> str:
        """What an expression of the module names, as "ringtls.TlsStream"; or ""."""
        return self._module.dotted(expression, self._module.scopes[expression])

    def class_of(self, expression: ast.expr) -> ast.ClassDef | None:
        """The subclass of AsyncDestructor, of this module, that an expression is a call of."""
        if isinstance(expression, ast.Call):
            made_of = self._module.definition(expression.func)
            if isinstance(made_of, ast.ClassDef) and self.is_destructor(made_of):
                return made_of
        return None

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

    def of(self, expression: ast.expr) -> Kind | None:
        if expression not in self._known:
            self._known[expression] = None  # for what is bound to itself
            self._known[expression] = self._find(expression)
        return self._known[expression]

    def _find(self, expression: ast.expr) -> Kind | None:
        match expression:
            case ast.Await(value=ast.Call(func=ast.Attribute(value=listener, attr="accept"))):
                kind = self.of(listener)
                return LISTENERS.get(kind) if kind else None
            case ast.Await(value=ast.Call(func=function)) | ast.Call(func=function):
                if self.class_of(expression) is not None:
                    return Kind.DESTRUCTOR
                kind, is_async = MAKERS.get(self.dotted(function), (None, False))
                return kind if is_async is isinstance(expression, ast.Await) else None
            case ast.NamedExpr(value=value):
                return self.of(value)
            case ast.Subscript(value=items):
                return self._of_item(items)
            case ast.Name(id=name):
                bindings = self._module.bindings(name, self._module.scopes[expression])
                kinds = {self._of_bound(binding) for binding in bindings}
                return kinds.pop() if len(kinds) == 1 else None
        return None

    def _of_item(self, items: ast.expr) -> Kind | None:
        kind = self.of(items)
        return None if kind is None else ITEMS.get(kind)

    def _of_bound(self, binding: Binding) -> Kind | None:
        match binding:
            case Binding(Origin.VALUE | Origin.ENTERED, ast.expr() as value):
                return self.of(value)
            case Binding(Origin.ITEM, ast.expr() as items):
                return self._of_item(items)
            case Binding(Origin.ANNOTATED, ast.expr() as annotation):
                kind = self._of_annotation(annotation)
                return None if kind and self._may_be_a_face(annotation, kind) else kind
        return None

    def _may_be_a_face(self, annotation: ast.expr, kind: Kind) -> bool:
        """Is it of a parameter for which blocking.call() may pass something else?"""
        parameter = self._module.parents[annotation]
        if not kind.is_blocking or not isinstance(parameter, ast.arg):
            return False
        function = self._module.parents[self._module.parents[parameter]]
        return isinstance(function, ast.AsyncFunctionDef)

    def _of_annotation(self, annotation: ast.expr) -> Kind | None:
        scope = self._module.scopes[annotation]
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval").body
            except SyntaxError:
                return None
        if isinstance(annotation, ast.Subscript):  # TlsStream[SocketStream]
            annotation = annotation.value
        definition = (
            self._module.definition(annotation) if annotation in self._module.scopes else None
        )
        if isinstance(definition, ast.ClassDef) and self.is_destructor(definition):
            return Kind.DESTRUCTOR
        return TYPES.get(self._module.dotted(annotation, scope))
