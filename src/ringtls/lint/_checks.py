"""The checks of one module."""

from __future__ import annotations

import ast
import enum
import itertools
from collections.abc import Iterator

from ._kinds import Kinds
from ._scopes import Module
from ._tables import CLOSERS, EXPECTING, HARMLESS, RULES, STREAMS, Kind

__all__ = ["Checker"]


class Use(enum.Enum):
    """What a use of a variable does for the stream in it."""

    HARMLESS = "leaves it open, and with nobody else"
    CLOSES = "closes it, if it is reached"
    CARES = "sees to its end, or may do so"


class Checker:
    """The flake8 plugin.

    Args:
      tree: of one module.
    """

    def __init__(self, tree: ast.Module) -> None:
        self._module = Module(tree)
        self._kinds = Kinds(self._module)

    def run(self) -> Iterator[tuple[int, int, str, type]]:
        """What was found: line (from 1), column (from 0), text, and this class."""
        for node in self._module.nodes:
            for at, code, kind in self._check(node):
                if not self._is_expected(at):
                    text = RULES[code].format(kind=kind.value)
                    yield at.lineno, at.col_offset, f"{code} {text}", type(self)

    def _check(self, node: ast.AST) -> Iterator[tuple[ast.expr, str, Kind]]:
        if isinstance(node, ast.With):
            for item in node.items:
                kind = self._kinds.of(item.context_expr)
                if kind:
                    yield item.context_expr, "RTL102", kind
        if isinstance(node, (ast.Call, ast.Await)):
            kind = self._kinds.of(node)
            if kind and kind in STREAMS and (code := self._fate(node)):
                yield node, code, kind
        if isinstance(node, ast.Call):
            if self._aborts_tls(node):
                yield node, "RTL103", Kind.TLS_STREAM
            kind = self._begins_operation(node)
            if kind and self._is_discarded(node):
                yield node, "RTL104", kind

    # RTL101, RTL105 (rule 4)

    def _fate(self, made: ast.expr) -> str | None:
        """The code of what is wrong with the end of a stream that is made here."""
        parent = self._module.parents[made]
        while isinstance(parent, (ast.BoolOp, ast.IfExp)):
            made, parent = parent, self._module.parents[parent]
        if made not in self._module.variables:
            return "RTL101" if self._what(made) is Use.HARMLESS else None
        if isinstance(parent, ast.NamedExpr) and self._what(parent) is not Use.HARMLESS:
            return None
        return self._fate_in_variable(made)

    def _fate_in_variable(self, made: ast.expr) -> str | None:
        uses = [use for use in self._uses_of(made) if not self._is_part(use, of=made)]
        if not self._is_local(made) or any(self._what(use) is Use.CARES for use in uses):
            return None
        closing = [use for use in uses if self._what(use) is Use.CLOSES]
        if not closing:
            return "RTL101"
        after = self._statement_after(made)
        if any(self._is_sure(use) or self._statement(use) is after for use in closing):
            return None
        return "RTL105"

    def _what(self, use: ast.expr) -> Use:
        parent = self._module.parents[use]
        match parent:
            case ast.Attribute(attr=attribute) if _is_harmless(attribute):
                return Use.HARMLESS
            case ast.Attribute(attr=attribute) if attribute in CLOSERS and self._is_done(parent):
                return Use.CLOSES
            case ast.Expr() | ast.Compare() | ast.FormattedValue() | ast.AsyncFor():
                return Use.HARMLESS
            case ast.UnaryOp() | ast.Assert() | ast.If() | ast.While():
                return Use.HARMLESS
            case ast.comprehension(is_async=1):
                return Use.HARMLESS
        return Use.CARES

    def _is_done(self, method: ast.Attribute) -> bool:
        """Is this method, which closes, called and awaited?"""
        call = self._module.parents[method]
        if not isinstance(call, ast.Call) or call.func is not method:
            return False
        return method.attr == "close_unclean" or isinstance(self._module.parents[call], ast.Await)

    def _is_sure(self, use: ast.Name) -> bool:
        """Is it in a ``finally`` or an ``except``, or in a function of its own?"""
        for parent, child in self._module.ancestors(use):
            if isinstance(parent, ast.ExceptHandler):
                return True
            if isinstance(parent, (ast.Try, ast.TryStar)) and child in parent.finalbody:
                return True
        return self._module.scopes[use] is not self._module.scopes[use].owner(use.id)

    # RTL103, RTL104

    def _aborts_tls(self, call: ast.Call) -> bool:
        passed = [call.func, *call.args]  # aclose_forcefully(stream), start_soon(it, stream)
        return any(
            self._kinds.dotted(function) == "trio.aclose_forcefully"
            and self._kinds.of(stream) is Kind.TLS_STREAM
            for function, stream in itertools.pairwise(passed)
        )

    def _begins_operation(self, call: ast.Call) -> Kind | None:
        """What a ``start_...`` method is called of."""
        match call.func:
            case ast.Attribute(value=maker, attr=attribute) if attribute.startswith("start_"):
                return self._kinds.of(maker)
        return None

    def _is_discarded(self, operation: ast.Call) -> bool:
        if isinstance(self._module.parents[operation], ast.Expr):
            return True
        return self._is_local(operation) and not self._uses_of(operation)

    # Places

    def _is_local(self, value: ast.expr) -> bool:
        """Is it the value of a function's own variable, and of no other?"""
        name = self._module.variables.get(value)
        return (
            name is not None
            and isinstance(self._module.scopes[name].node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and not self._module.is_shared(name.id)
        )

    def _uses_of(self, value: ast.expr) -> list[ast.Name]:
        """Where the variable that takes this value is read."""
        name = self._module.variables[value]
        return self._module.uses(name.id, self._module.scopes[name])

    def _is_part(self, node: ast.AST, *, of: ast.expr) -> bool:
        return any(parent is of for parent, _ in self._module.ancestors(node))

    def _statement(self, node: ast.AST) -> ast.AST:
        return next(
            parent for parent, _ in self._module.ancestors(node) if isinstance(parent, ast.stmt)
        )

    def _statement_after(self, node: ast.AST) -> ast.AST | None:
        """What is done next; of a ``with`` or ``try``, what it begins with."""
        statement = self._statement(node)
        for _, block in ast.iter_fields(self._module.parents[statement]):
            if isinstance(block, list) and statement in block[:-1]:
                following: ast.AST = block[block.index(statement) + 1]
                while isinstance(following, (ast.With, ast.Try)):
                    following = following.body[0]
                return following
        return None

    def _is_expected(self, node: ast.AST) -> bool:
        """Rule 5."""
        for parent, _ in self._module.ancestors(node):
            if isinstance(parent, (ast.With, ast.AsyncWith)):
                for item in parent.items:
                    match item.context_expr:
                        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                            if name in EXPECTING:
                                return True
        return False


def _is_harmless(attribute: str) -> bool:
    return attribute in HARMLESS or attribute.startswith("start_")
