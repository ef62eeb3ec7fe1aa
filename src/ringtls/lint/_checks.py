"""The checks of one module. The rules are those of the package."""

from __future__ import annotations

import ast
import enum
import itertools
from collections.abc import Iterator

from ._kinds import Kinds
from ._lending import Lending
from ._scopes import FUNCTIONS, Module, Origin
from ._tables import (
    ABORTERS,
    BLOCKING_CLOSERS,
    CLOSERS,
    ENDERS,
    EXPECTING,
    RULES,
    TO_BE_CLOSED,
    Kind,
)

__all__ = ["Checker"]


#: What may take a while, or do something that this check does not see.
DOING = (ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Call, ast.Yield, ast.YieldFrom)


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
        self._lending = Lending(self._module, self._kinds)

    def run(self) -> Iterator[tuple[int, int, str, type]]:
        """What was found: line (from 1), column (from 0), text, and this class."""
        for node in self._module.nodes:
            for at, code, kind in self._check(node):
                if not self._is_expected(at):
                    text = RULES[code].format(
                        kind=kind.value, a_kind=kind.with_article, entered_with=kind.entered_with
                    )
                    yield at.lineno, at.col_offset, f"{code} {text}", type(self)

    def _check(self, node: ast.AST) -> Iterator[tuple[ast.expr, str, Kind]]:
        if isinstance(node, (ast.With, ast.AsyncWith)):
            yield from self._check_entered(node)
        if isinstance(node, (ast.Call, ast.Await)):
            kind = self._kinds.of(node)
            if kind and kind in TO_BE_CLOSED and (code := self._fate(node)):
                yield node, code, kind
        if isinstance(node, ast.Call):
            if self._aborts_tls(node):
                yield node, "RTL103", Kind.TLS_STREAM
            kind = self._begins_operation(node)
            if kind and self._is_discarded(node):
                yield node, "RTL104", kind
            if self._destroys(node):
                yield node, "RTL109", Kind.DESTRUCTOR

        if isinstance(node, ast.Assign):
            for target in node.targets:
                match target:
                    case ast.Attribute(value=ast.Name() as stream, attr="farewell"):
                        kind = self._kinds.of(stream)
                        if kind and self._is_late(target, stream):
                            yield target, "RTL110", kind

    # RTL102, RTL107, RTL108

    def _check_entered(
        self, node: ast.With | ast.AsyncWith
    ) -> Iterator[tuple[ast.expr, str, Kind]]:
        for item in node.items:
            kind = self._kinds.of(item.context_expr)
            if not kind:
                continue
            if isinstance(node, ast.With):
                if not kind.is_blocking and not self._may_be_entered(item.context_expr):
                    yield item.context_expr, "RTL102", kind
            elif kind.is_blocking:
                yield item.context_expr, "RTL108", kind
            elif task := self._task_that_is_late(node, item):
                yield task, "RTL107", kind

    def _may_be_entered(self, value: ast.expr) -> bool:
        """Is it of a class of the module that may be a context manager, too?"""
        cls = self._kinds.class_of(value)
        return cls is not None and self._lending.may_have(cls, "__enter__")

    def _task_that_is_late(self, node: ast.AsyncWith, item: ast.withitem) -> ast.Call | None:
        """A task that gets what is entered here, of a nursery around this, which waits for nothing.

        The nursery is entered before, and the body does nothing but to start tasks.
        """
        entered = item.optional_vars or item.context_expr
        found = None
        for statement in node.body:
            match statement:
                case ast.Expr(
                    value=ast.Call(
                        func=ast.Attribute(value=ast.Name() as nursery, attr="start_soon"),
                        args=[_, *arguments],
                    ) as call
                ) if self._is_entered_around(nursery, node, item):
                    for each in arguments:
                        if isinstance(entered, ast.Name) and _is_name(each, entered.id):
                            found = call
                case _:
                    return None
        return found

    def _is_entered_around(self, name: ast.Name, node: ast.AsyncWith, item: ast.withitem) -> bool:
        """Is it what an ``async with`` around that item is entered as, and nothing after it?"""
        bindings = self._module.bindings(name.id, self._module.scopes[name])
        if any(each.origin is not Origin.ENTERED for each in bindings):
            return False
        position = node.items.index(item)
        before, after = node.items[:position], node.items[position:]
        for parent, _ in self._module.ancestors(node):
            if isinstance(parent, ast.AsyncWith):
                before += parent.items
        return _enters_as(before, name.id) and not _enters_as(after, name.id)

    # RTL101, RTL105 (rules 4 and 5), RTL106 (rule 6)

    def _fate(self, made: ast.expr) -> str | None:
        """The code of what is wrong with the end of what is made here."""
        cls = self._kinds.class_of(made)
        if cls is not None and self._lending.keeps_when_made(cls):
            return None
        origin = made
        parent = self._module.parents[made]
        while isinstance(parent, (ast.BoolOp, ast.IfExp)):
            made, parent = parent, self._module.parents[parent]
        if made not in self._module.variables:
            return "RTL101" if self._what(made, origin) is Use.HARMLESS else None
        if isinstance(parent, ast.NamedExpr) and self._what(parent, origin) is not Use.HARMLESS:
            return None
        return self._fate_in_variable(made, origin)

    def _fate_in_variable(self, made: ast.expr, origin: ast.expr) -> str | None:
        uses = [use for use in self._uses_of(made) if not self._is_part(use, of=made)]
        if not self._is_local(made):
            return None
        is_plain = all(self._is_own(use) for use in uses)
        if is_plain and (
            self._is_lost_in_its_block(made, origin) or self._is_lost_in_a_loop(made, origin)
        ):
            return "RTL106" if uses else "RTL101"
        if any(self._what(use, origin) is Use.CARES for use in uses):
            return None
        closing = [use for use in uses if self._what(use, origin) is Use.CLOSES]
        if not closing:
            return "RTL101"
        after = self._statement_after(made)
        if any(self._is_sure(use) or self._statement(use) is after for use in closing):
            return None
        return "RTL105"

    def _is_lost_in_its_block(self, made: ast.expr, origin: ast.expr) -> bool:
        """Is its variable bound anew, or deleted, by a later statement of the same block?"""
        variable = self._module.variables[made]
        statement = self._statement(made)
        block = self._block(statement)
        for later in block[block.index(statement) + 1 :]:
            if not self._is_unclosed_by(later, variable, origin):
                return False
            if _rebinds(later, variable.id):
                return True
        return False

    def _is_lost_in_a_loop(self, made: ast.expr, origin: ast.expr) -> bool:
        """Does the next round of a loop bind its variable to something else?"""
        variable = self._module.variables[made]
        for parent, child in self._module.ancestors(made):
            if isinstance(parent, (ast.For, ast.AsyncFor)):
                whole = child in parent.body and not any(map(_leaves, ast.walk(parent)))
                return whole and self._is_unclosed_by(parent, variable, origin)
            if isinstance(parent, (*FUNCTIONS, ast.While, ast.Try, ast.TryStar)):
                return False
        return False

    def _is_unclosed_by(self, statement: ast.AST, variable: ast.Name, origin: ast.expr) -> bool:
        uses = self._module.uses(variable.id, self._module.scopes[variable])
        return all(
            self._what(use, origin) is Use.HARMLESS
            for use in uses
            if self._is_part(use, of=statement)
        )

    def _what(self, use: ast.expr, made: ast.expr) -> Use:
        """What a use does for what was made there."""
        kind, cls = self._kinds.of(made), self._kinds.class_of(made)
        closers = BLOCKING_CLOSERS if kind and kind.is_blocking else CLOSERS
        parent = self._module.parents[use]
        match parent:
            case ast.Attribute(attr=attribute) if self._lending.is_harmless_attribute(
                attribute, cls
            ):
                return Use.HARMLESS
            case ast.Attribute(attr=attribute) if attribute in closers and self._is_done(
                parent, kind
            ):
                return Use.CLOSES
            case ast.Attribute(attr="aclose") if self._is_forgotten(parent):
                return Use.HARMLESS
            case ast.Call(func=function) if self._kinds.dotted(function) in ENDERS:
                if self._is_awaited(parent):
                    return Use.CLOSES
                return Use.HARMLESS if self._is_forgotten(function) else Use.CARES
            case ast.Expr() | ast.Compare() | ast.FormattedValue() | ast.AsyncFor() | ast.For():
                return Use.HARMLESS
            case ast.UnaryOp() | ast.Assert() | ast.If() | ast.While() | ast.comprehension():
                return Use.HARMLESS
            case ast.Call() if self._lending.is_lent(
                use, lambda each: self._what(each, made) is Use.HARMLESS
            ):
                return Use.HARMLESS
        return Use.CARES

    def _is_done(self, method: ast.Attribute, kind: Kind | None) -> bool:
        """Is this method, which closes, called, and awaited if it has to be?"""
        call = self._module.parents[method]
        if not isinstance(call, ast.Call) or call.func is not method:
            return False
        if method.attr == "close_unclean" or (kind and kind.is_blocking):
            return True
        return self._is_awaited(call)

    def _is_forgotten(self, function: ast.expr) -> bool:
        """Is it called by a statement that does not await it?"""
        call = self._module.parents[function]
        is_called = isinstance(call, ast.Call) and call.func is function
        return is_called and isinstance(self._module.parents[call], ast.Expr)

    def _is_awaited(self, call: ast.AST) -> bool:
        return isinstance(self._module.parents[call], ast.Await)

    def _is_sure(self, use: ast.Name) -> bool:
        """Is it in a ``finally`` or an ``except``, or in a function of its own?"""
        for parent, child in self._module.ancestors(use):
            if isinstance(parent, ast.ExceptHandler):
                return True
            if isinstance(parent, (ast.Try, ast.TryStar)) and child in parent.finalbody:
                return True
        return not self._is_own(use)

    def _is_own(self, use: ast.Name) -> bool:
        """Is it used in the function whose variable it is, and not in one of its own?"""
        return self._module.scopes[use] is self._module.scopes[use].owner(use.id)

    # RTL103, RTL104

    def _aborts_tls(self, call: ast.Call) -> bool:
        passed = [call.func, *call.args]  # aclose_forcefully(stream), start_soon(it, stream)
        return any(
            self._kinds.dotted(function) in ABORTERS and self._kinds.of(stream) is Kind.TLS_STREAM
            for function, stream in itertools.pairwise(passed)
        )

    def _begins_operation(self, call: ast.Call) -> Kind | None:
        """What a ``start_...`` method is called of."""
        match call.func:
            case ast.Attribute(value=maker, attr=attribute) if attribute.startswith("start_"):
                kind = self._kinds.of(maker)
                return None if kind is Kind.DESTRUCTOR else kind
        return None

    def _destroys(self, call: ast.Call) -> bool:
        """Is it a call of ``adestroy``, of a value or in a method of its class?"""
        match call.func:
            case ast.Attribute(value=ast.Name() as value, attr="adestroy"):
                if self._kinds.of(value) is Kind.DESTRUCTOR:
                    return True
                scope = self._module.scopes[value].owner(value.id)
                method = None if scope is None else scope.node
                if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    cls = self._module.parents[method]
                    is_self = [each.arg for each in method.args.args[:1]] == [value.id]
                    return (
                        is_self and isinstance(cls, ast.ClassDef) and self._kinds.is_destructor(cls)
                    )
        return False

    def _is_late(self, farewell: ast.Attribute, stream: ast.Name) -> bool:
        """Rule 7."""
        assignment = self._module.parents[farewell]
        assert isinstance(assignment, ast.Assign)
        if isinstance(assignment.value, ast.Constant) and assignment.value.value is None:
            return False
        parents = [parent for parent, _ in self._module.ancestors(assignment)]
        function = next((each for each in parents if isinstance(each, FUNCTIONS)), None)
        if function is None:
            return False
        around = parents[: parents.index(function)]
        entered = [each for each in around if isinstance(each, (ast.With, ast.AsyncWith))]
        if len(entered) < len(around) or not any(_enters(each, stream.id) for each in entered):
            return False
        nodes = list(ast.walk(function))
        if any(each is not farewell and _is_farewell(each, stream.id) for each in nodes):
            return False
        done = [node for node in nodes if isinstance(node, DOING)]
        return all(_begins(node) < _end(assignment) for node in done) and any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "send_all"
            and _is_name(node.func.value, stream.id)
            for node in done
        )

    def _is_discarded(self, operation: ast.Call) -> bool:
        if isinstance(self._module.parents[operation], ast.Expr):
            return True
        return self._is_local(operation) and not self._uses_of(operation)

    # Places

    def _is_local(self, value: ast.expr) -> bool:
        """Is it the value of a function's own variable, and of no other?"""
        name = self._module.variables.get(value)
        if name is None:
            return False
        scope = self._module.scopes[name]
        return isinstance(
            scope.node, (ast.FunctionDef, ast.AsyncFunctionDef)
        ) and not self._module.is_shared(name.id, scope)

    def _uses_of(self, value: ast.expr) -> list[ast.Name]:
        """Where the variable that takes this value is read."""
        name = self._module.variables[value]
        return self._module.uses(name.id, self._module.scopes[name])

    def _is_part(self, node: ast.AST, *, of: ast.AST) -> bool:
        return any(parent is of for parent, _ in self._module.ancestors(node))

    def _statement(self, node: ast.AST) -> ast.AST:
        return next(
            parent for parent, _ in self._module.ancestors(node) if isinstance(parent, ast.stmt)
        )

    def _block(self, statement: ast.AST) -> list[ast.AST]:
        """The statements among which it is."""
        for _, block in ast.iter_fields(self._module.parents[statement]):
            if isinstance(block, list) and statement in block:
                return block
        return [statement]

    def _statement_after(self, node: ast.AST) -> ast.AST | None:
        """What is done next; of a ``with`` or ``try``, what it begins with."""
        following = self._following(self._statement(node))
        while isinstance(following, (ast.With, ast.Try)):
            following = following.body[0]
        return following

    def _following(self, statement: ast.AST) -> ast.AST | None:
        """What is done after a statement; None if it ends its function, or a loop's round."""
        while True:
            block = self._block(statement)
            if statement is not block[-1]:
                return block[block.index(statement) + 1]
            around = self._module.parents[statement]
            if isinstance(around, ast.ExceptHandler):
                around = self._module.parents[around]
            if isinstance(around, (ast.Try, ast.TryStar)):
                if block is around.body and around.orelse:
                    return around.orelse[0]
                if block is not around.finalbody and around.finalbody:
                    return around.finalbody[0]
            elif not isinstance(around, (ast.If, ast.With)):
                return None
            statement = around

    def _is_expected(self, node: ast.AST) -> bool:
        """Rule 8."""
        for parent, _ in self._module.ancestors(node):
            if isinstance(parent, (ast.With, ast.AsyncWith)):
                for item in parent.items:
                    match item.context_expr:
                        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                            if name in EXPECTING:
                                return True
        return False


def _is_name(node: ast.AST | None, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _enters_as(items: list[ast.withitem], name: str) -> bool:
    return any(_is_name(each.optional_vars, name) for each in items)


def _enters(statement: ast.With | ast.AsyncWith, name: str) -> bool:
    return any(
        _is_name(item.optional_vars, name) or _is_name(item.context_expr, name)
        for item in statement.items
    )


def _is_farewell(node: ast.AST, name: str) -> bool:
    """Is it the farewell of that stream, being set?"""
    match node:
        case ast.Attribute(value=stream, attr="farewell", ctx=ast.Store()):
            return _is_name(stream, name)
    return False


def _begins(node: ast.expr | ast.stmt) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.stmt) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def _rebinds(statement: ast.AST, name: str) -> bool:
    match statement:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            return any(_is_name(target, name) for target in targets)
        case ast.AnnAssign(target=target, value=ast.expr()):
            return _is_name(target, name)
    return False


def _leaves(node: ast.AST) -> bool:
    """Does it leave the loop, or go on with its next round early?"""
    return isinstance(node, (ast.Break, ast.Continue, ast.Return, ast.Raise))
