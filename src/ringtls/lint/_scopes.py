"""What the names of a module are bound to, by Python's rules of scope."""

from __future__ import annotations

import ast
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["FUNCTIONS", "Binding", "Definition", "Function", "Module", "Origin", "Scope"]

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

#: Parts of a definition that belong to the scope around it.
OUTSIDE = {"bases", "decorator_list", "keywords", "returns"}
DEFAULTS = {"defaults", "kw_defaults"}


class Origin(enum.Enum):
    """How a name comes by what it is bound to."""

    VALUE = "assigned"
    ENTERED = "with ... as"
    ITEM = "one of several"
    ANNOTATED = "known by its annotation"
    IMPORTED = "imported"
    DEFINED = "def or class"
    UNKNOWN = "not understood"


@dataclass(frozen=True)
class Binding:
    origin: Origin
    expression: ast.expr | None = None
    imported: str = ""
    definition: Definition | None = None


UNKNOWN = Binding(Origin.UNKNOWN)


@dataclass(eq=False)
class Scope:
    node: ast.AST
    parent: Scope | None
    bindings: dict[str, list[Binding]] = field(default_factory=dict)

    def bind(self, name: str, binding: Binding) -> None:
        self.bindings.setdefault(name, []).append(binding)

    def owner(self, name: str) -> Scope | None:
        """The scope whose name it is when it is used in this one."""
        scope: Scope | None = self
        while scope is not None:
            visible = scope is self or not isinstance(scope.node, ast.ClassDef)
            if visible and name in scope.bindings:
                return scope
            scope = scope.parent
        return None


class Module:
    """A syntax tree whose nodes know their parents and scopes. Made without recursion."""

    def __init__(self, tree: ast.Module) -> None:
        self.nodes: list[ast.AST] = []
        self.parents: dict[ast.AST, ast.AST] = {}
        self.scopes: dict[ast.AST, Scope] = {}
        #: The variable that takes the value of an expression, if it is one.
        self.variables: dict[ast.expr, ast.Name] = {}
        self._uses: dict[str, list[ast.Name]] = {}
        self._shared: set[tuple[Scope, str]] = set()
        waiting: list[tuple[ast.AST, Scope]] = [(tree, Scope(tree, None))]
        while waiting:
            node, scope = waiting.pop()
            self.nodes.append(node)
            self.scopes[node] = scope
            self._read(node, scope)
            for child, child_scope in _children(node, scope):
                self.parents[child] = node
                waiting.append((child, child_scope))

    def ancestors(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """Each parent from here up, with the child that leads here."""
        while node in self.parents:
            parent = self.parents[node]
            yield parent, node
            node = parent

    def uses(self, name: str, scope: Scope) -> list[ast.Name]:
        """Where this scope's name is read, nested scopes included."""
        return [use for use in self._uses.get(name, ()) if self.scopes[use].owner(name) is scope]

    def is_shared(self, name: str, scope: Scope) -> bool:
        """True if this scope, or one inside of it, declares the name ``global`` or ``nonlocal``."""
        return (scope, name) in self._shared

    def bindings(self, name: str, scope: Scope) -> list[Binding]:
        """All that a name may be bound to where it is used; empty if that is not known."""
        owner = scope.owner(name)
        return [] if owner is None or self.is_shared(name, owner) else owner.bindings[name]

    def dotted(self, expression: ast.expr, scope: Scope) -> str:
        """What an expression names by imports and aliases, as "ringtls.TlsStream"; or ""."""
        attributes: list[str] = []
        seen: set[ast.expr] = set()
        while expression not in seen:
            seen.add(expression)
            if isinstance(expression, ast.Attribute):
                attributes.append(expression.attr)
                expression = expression.value
            elif isinstance(expression, ast.Name):
                bindings = self.bindings(expression.id, scope)
                imported = {binding.imported for binding in bindings}
                if len(imported) == 1 and (name := imported.pop()):
                    return ".".join([name, *reversed(attributes)])
                if len(bindings) == 1 and bindings[0].origin is Origin.VALUE:
                    assert bindings[0].expression is not None
                    expression = bindings[0].expression
                    scope = self.scopes[expression]
        return ""

    def definition(self, expression: ast.expr) -> Definition | None:
        """The function or class of this module that an expression names, if it names one."""
        if isinstance(expression, ast.Subscript):  # of something generic
            expression = expression.value
        if isinstance(expression, ast.Name):
            bindings = self.bindings(expression.id, self.scopes[expression])
            if len(bindings) == 1:
                return bindings[0].definition
        return None

    def inner_scope(self, definition: Definition) -> Scope:
        """The scope of what is inside of it."""
        return self.scopes[definition.body[0]]

    def _read(self, node: ast.AST, scope: Scope) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                self._uses.setdefault(name, []).append(node)
            case ast.Name(id=name, ctx=ast.Store()):
                scope.bind(name, self._target(node))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                scope.bind(node.name, Binding(Origin.DEFINED, definition=node))
            case ast.ExceptHandler(name=str(name)):
                scope.bind(name, UNKNOWN)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                scope.bind(name, UNKNOWN)
            case ast.MatchMapping(rest=str(name)):
                scope.bind(name, UNKNOWN)
            case ast.arg(arg=name, annotation=annotation):
                scope.bind(name, Binding(Origin.ANNOTATED, annotation) if annotation else UNKNOWN)
            case ast.Import(names=names):
                for alias in names:
                    imported = alias.name if alias.asname else alias.name.partition(".")[0]
                    scope.bind(alias.asname or imported, Binding(Origin.IMPORTED, None, imported))
            case ast.ImportFrom(module=module, names=names, level=level):
                for alias in names:
                    known = Binding(Origin.IMPORTED, None, f"{module}.{alias.name}")
                    scope.bind(alias.asname or alias.name, UNKNOWN if level else known)
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                around: Scope | None = scope
                while around is not None:
                    self._shared.update((around, name) for name in names)
                    around = around.parent

    def _target(self, name: ast.Name) -> Binding:
        """What an assignment, in whatever form, binds this name to."""
        parent = self.parents[name]
        match parent:
            case ast.Assign(targets=[_], value=value) | ast.NamedExpr(value=value):
                return self._assigned(name, value)
            case ast.Assign(value=value):
                return Binding(Origin.VALUE, value)
            case ast.AnnAssign(
                annotation=ast.Name(id="TypeAlias") | ast.Attribute(attr="TypeAlias"),
                value=ast.expr() as value,
            ):
                return Binding(Origin.VALUE, value)
            case ast.AnnAssign(annotation=annotation, value=value):
                if value is not None:
                    self._assigned(name, value)
                return Binding(Origin.ANNOTATED, annotation)
            case ast.For(iter=items) | ast.comprehension(iter=items, is_async=0):
                return Binding(Origin.ITEM, items)
            case ast.withitem(context_expr=entered):
                return Binding(Origin.ENTERED, entered)
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                match self.parents[parent]:
                    case ast.Assign(targets=[_], value=ast.Tuple(elts=values)):
                        if len(targets) == len(values):
                            return self._assigned(name, values[targets.index(name)])
                    case ast.Assign(value=value):
                        return Binding(Origin.ITEM, value)
        return UNKNOWN

    def _assigned(self, name: ast.Name, value: ast.expr) -> Binding:
        self.variables[value] = name
        return Binding(Origin.VALUE, value)


def _children(node: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    """The parts of a node, each with its scope."""
    inner = scope
    if isinstance(node, (*FUNCTIONS, *COMPREHENSIONS, ast.ClassDef)):
        inner = Scope(node, scope)
    for name, value in ast.iter_fields(node):
        part_scope = scope if name in OUTSIDE else inner
        if name in DEFAULTS and scope.parent is not None:  # of ast.arguments
            part_scope = scope.parent
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST):
                yield part, part_scope
