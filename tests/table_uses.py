"""Statements of SQL files, read by PostgreSQL's own parser: what each says of a warehouse's tables.

Bodies of functions are read as well, in SQL and in PL/pgSQL; what is put together as a string when
it runs is not.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pglast
from pglast import ast

SQL = Path(__file__).parents[1] / "sql"
KEY = "warehouse_id"
EXCERPT = 56
"""How many characters of a statement tell which it is."""
ASSIGNED = re.compile(r"\A[^=:]*:?=")
AS_STATEMENT, AS_EXPRESSION = 0, 2
"""How PL/pgSQL parses a piece of its text; what is above assigns."""


@dataclass
class Use:
    """A table that a statement reads or writes."""

    table: str
    excerpt: str
    is_named: bool = False
    """Whether the statement speaks of the table's warehouse_id."""


Scope = dict[str, Use | None]
"""What the names in a FROM stand for; None for what is no table of a warehouse."""


@dataclass
class Reader:
    """Goes through a parsed statement, and finds each use of certain tables.

    Args:
        text: what was parsed.
        tables: the tables that are looked for.
    """

    text: str
    tables: frozenset[str]
    uses: list[Use] = field(default_factory=list)

    def read(
        self, node: Any, scopes: tuple[Scope, ...] = (), known: frozenset[str] = frozenset()
    ) -> None:
        """Read a node, within the scopes around it and the WITH queries that it may name."""
        match node:
            case tuple():
                for each in node:
                    self.read(each, scopes, known)
            case ast.ColumnRef():
                self._name(node, scopes)
            case ast.SelectStmt() | ast.UpdateStmt() | ast.DeleteStmt() | ast.MergeStmt():
                known |= _queries(node)
                scope: Scope = {}
                self._enter(_target(node), scope, known, _verb(node))
                for name in ("fromClause", "usingClause", "sourceRelation"):
                    self._enter(getattr(node, name, None), scope, known, "from")
                self._read_parts(node, (*scopes, scope), known)
            case ast.InsertStmt():
                known |= _queries(node)
                scope = {"excluded": None}
                self._enter(node.relation, scope, known, "insert into")
                columns = {each.name for each in node.cols or ()}
                for use in scope.values():
                    if use:
                        use.is_named = KEY in columns
                self.read((node.withClause, node.selectStmt), scopes, known)
                self.read((node.onConflictClause, node.returningClause), (*scopes, scope), known)
            case ast.Node():
                self._read_parts(node, scopes, known)

    def _read_parts(self, node: Any, scopes: tuple[Scope, ...], known: frozenset[str]) -> None:
        for name in node:
            self.read(getattr(node, name), scopes, known)

    def _enter(self, node: Any, scope: Scope, known: frozenset[str], verb: str) -> None:
        """Note what the names of a FROM stand for."""
        match node:
            case tuple():
                for each in node:
                    self._enter(each, scope, known, verb)
            case ast.RangeVar():
                name = node.alias.aliasname if node.alias else node.relname
                scope[name] = None
                if node.relname in self.tables and (node.schemaname or node.relname not in known):
                    rest = " ".join(self.text[node.location :].split(";")[0].split())
                    scope[name] = use = Use(node.relname, f"{verb} {rest}"[:EXCERPT].rstrip())
                    self.uses.append(use)
            case ast.JoinExpr():
                joined: Scope = {}
                self._enter((node.larg, node.rarg), joined, known, verb)
                if KEY in {each.sval for each in node.usingClause or ()}:
                    for use in joined.values():
                        if use:
                            use.is_named = True
                scope |= joined
            case ast.RangeSubselect() | ast.RangeFunction() if node.alias:
                scope[node.alias.aliasname] = None

    @staticmethod
    def _name(node: ast.ColumnRef, scopes: tuple[Scope, ...]) -> None:
        """Mark the tables whose warehouse_id a column is: of the nearest that it can be of."""
        path = [each.sval if isinstance(each, ast.String) else "*" for each in node.fields]
        if path[-1] != KEY:
            return
        for scope in reversed(scopes):
            if not scope or (len(path) > 1 and path[-2] not in scope):
                continue
            for use in [scope[path[-2]]] if len(path) > 1 else scope.values():
                if use:
                    use.is_named = True
            return


def _queries(node: Any) -> frozenset[str]:
    """The names of a statement's WITH."""
    return frozenset(each.ctename for each in (node.withClause.ctes if node.withClause else ()))


def _target(node: Any) -> Any:
    return None if isinstance(node, ast.SelectStmt) else node.relation


def _verb(node: Any) -> str:
    verbs = {ast.UpdateStmt: "update", ast.DeleteStmt: "delete from", ast.MergeStmt: "merge into"}
    return verbs.get(type(node), "from")


def schema_types() -> tuple[frozenset[str], frozenset[str]]:
    """The tables that have a warehouse, and the types that have one value; from sql/schema."""
    tables, types = set(), set()
    for file in sorted((SQL / "schema").glob("*.sql")):
        for raw in pglast.parse_sql(file.read_text()):
            match raw.stmt:
                case ast.CreateStmt(relation=table, tableElts=columns, inhRelations=parents):
                    names = {
                        each.colname for each in columns or () if isinstance(each, ast.ColumnDef)
                    }
                    if KEY in names or tables & {each.relname for each in parents or ()}:
                        tables.add(table.relname)
                case ast.CreateEnumStmt(typeName=name) | ast.CreateDomainStmt(domainname=name):
                    types.add(name[-1].sval)
    return frozenset(tables), frozenset(types)


def uses_of(text: str, tables: frozenset[str], types: frozenset[str]) -> Iterator[tuple[str, Use]]:
    """Each use of a warehouse's table in a file, with the function, view or policy that has it.

    Args:
        text: the file.
        tables: the tables of a warehouse.
        types: the schema's own types that have one value.

    Raises:
        pglast.parser.ParseError: it is no SQL.
    """
    for raw in pglast.parse_sql(text):
        end = raw.stmt_location + raw.stmt_len if raw.stmt_len else len(text)
        name, pieces = _taken_apart(raw.stmt, text[raw.stmt_location : end], types)
        readers = [Reader(text[:end], tables)]
        readers[0].read(raw.stmt)
        for piece in pieces:
            readers.append(Reader(piece, tables))
            readers[-1].read(tuple(each.stmt for each in pglast.parse_sql(piece)))
        yield from ((name, use) for reader in readers for use in reader.uses)


def _taken_apart(node: Any, text: str, types: frozenset[str]) -> tuple[str, Iterator[str]]:
    """What a statement makes is called, and the statements in its body if that is a string."""
    match node:
        case ast.CreateFunctionStmt():
            options = {each.defname: each.arg for each in node.options}
            name = node.funcname[-1].sval
            if options["language"].sval == "plpgsql":
                return name, _statements(pglast.parse_plpgsql(_plain(text, types)))
            return name, iter(each.sval for each in options.get("as", ()))
        case ast.DoStmt():
            return "do", _statements(pglast.parse_plpgsql(_plain(text, types)))
        case ast.ViewStmt():
            return node.view.relname, iter(())
        case ast.CreatePolicyStmt():
            return node.policy_name, iter(())
    return type(node).__name__, iter(())


def _plain(text: str, types: frozenset[str]) -> str:
    """A function with variables of types that PostgreSQL has: the parser knows no other."""
    own = re.compile(
        r"(\b[vp]_\w+\s+(?:constant\s+)?|\breturns\s+(?:setof\s+)?)"
        rf"(\w+\[\]|(?:{'|'.join(sorted(types))})\b)",
        re.IGNORECASE,
    )
    text = re.sub(r"\bvariadic\s+", "", text, flags=re.IGNORECASE)
    return own.sub(lambda found: found[1] + ("text[]" if found[2].endswith("]") else "text"), text)


def _statements(node: Any) -> Iterator[str]:
    """The SQL in a parsed body, each expression as the statement that it is run as."""
    match node:
        case list():
            for each in node:
                yield from _statements(each)
        case {"query": text, "parseMode": mode}:
            if mode == AS_EXPRESSION:
                yield f"select {text}"
            else:
                yield text if mode == AS_STATEMENT else f"select {ASSIGNED.sub('', text, count=1)}"
        case dict():
            for each in node.values():
                yield from _statements(each)
