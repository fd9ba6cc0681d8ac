"""What is taken away from SQL: conditions, constraints, policies, triggers, locks, bounds.

The tokens are those of sqlglot, which reads PL/pgSQL as well, since it is the same lexer; what
an edit makes of a statement, the server says when the database is built.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

from mutant import Edit
from sqlglot.dialects.postgres import Postgres
from sqlglot.tokens import TokenType

ENDS_A_CONDITION = frozenset(
    re.findall(
        r"\S+",
        "group having order limit offset returning for union except intersect window loop then"
        " where join inner left right full cross on ;",
    )
)
COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
KEEP_THE_FIRST = {"coalesce", "greatest", "least", "nullif"}
BY_ID = re.compile(r"(^|\. )(id|order_id|saga_id|refund_id) = ")
BY_WAREHOUSE = re.compile(r"(\w+ \. )?warehouse_id = \S.*")
"""An id is one in the whole database; the warehouse beside it only says where to look."""
NAMED = re.compile(
    r"""create\s+(?:or\s+replace\s+|unique\s+|constraint\s+)*
    (function|view|trigger|policy|table|index|domain|type)\s+(?:if\s+not\s+exists\s+)?(\w+|"[^"]+")""",
    re.VERBOSE | re.IGNORECASE,
)


class Tokenizer(Postgres.Tokenizer):
    """PostgreSQL's, with all statements read to the end."""

    COMMANDS: ClassVar[set[TokenType]] = set()


class Token(NamedTuple):
    """A word, number, literal or sign, in lower case, and where it stands."""

    text: str
    start: int
    end: int
    kind: str = ""


def tokens(source: str, start: int = 0) -> Iterator[Token]:
    """The tokens of a text that begins at `start` of its file; bodies between `$$` are entered."""
    for token in Tokenizer().tokenize(source):
        at, kind = start + token.start, token.token_type.name
        raw = source[token.start : token.end + 1]
        if raw.startswith("$$"):
            yield Token("$$", at, at + 2)
            yield from tokens(raw[2:-2], at + 2)
            yield Token("$$ ends", at + len(raw) - 2, at + len(raw))
        elif kind in {"STRING", "IDENTIFIER", "HEREDOC_STRING", "BYTE_STRING"}:
            yield Token(raw, at, at + len(raw), "literal")
        else:  # several words that sqlglot takes for one keyword are several here
            for word in re.finditer(r"\S+", raw):
                yield Token(word[0].lower(), at + word.start(), at + word.end(), kind)


@dataclass
class Statements:
    """The tokens of a file, how deep each stands in brackets, and in which."""

    source: str

    def __post_init__(self) -> None:
        self.tokens = list(tokens(self.source))
        self.words = [each.text for each in self.tokens]
        self.within: list[int] = []
        open_: list[int] = []
        self.closes: dict[int, int] = {}
        for at, word in enumerate(self.words):
            after = self.word(at + 1)
            if open_ and (
                word in {")", "]", "$$ ends"}
                or (
                    word == "end"
                    and self.words[open_[-1]] in {"case", "begin"}
                    and after not in {"if", "loop"}
                )
            ):
                self.closes[open_.pop()] = at
            self.within.append(open_[-1] if open_ else -1)
            if word in {"(", "[", "$$", "begin"} or (word == "case" and self.word(at - 1) != "end"):
                open_.append(at)

    def word(self, at: int) -> str:
        """A token's text; empty before the first and after the last."""
        return self.words[at] if 0 <= at < len(self.words) else ""

    def until(self, at: int, ends: frozenset[str]) -> int:
        """The first token from `at` that ends a clause there: one of `ends`, or its bracket's."""
        inside = self.within[at - 1] if self.words[at - 1] not in {"(", "["} else at - 1
        while at < len(self.words) and at != self.closes.get(inside):
            called = self.words[at] in {"left", "right"} and self.word(at + 1) == "("
            if self.within[at] == inside and self.words[at] in ends and not called:
                break
            at += 1
        return at

    def edit(self, where: str, kind: str, first: int, end: int, put: str) -> Edit:
        """Tokens `first` up to, not with, `end` become `put`."""
        return Edit(where, kind, self.tokens[first].start, self.tokens[end - 1].end, put)

    def split(self, first: int, end: int, word: str) -> list[tuple[int, int]]:
        """The operands of `and` or `or` between two tokens."""
        inside = self.within[first]
        cuts, between = [first - 1], False
        for at in range(first, end):
            if self.within[at] != inside:
                continue
            if self.words[at] == "between":
                between = True
            elif self.words[at] == word and not (word == "and" and between):
                cuts.append(at)
            elif self.words[at] == "and":
                between = False
        return [(a + 1, b) for a, b in pairwise([*cuts, end])]

    def operands(self, where: str, first: int, end: int) -> Iterator[Edit]:
        """Each operand of a condition left out, in brackets too; nothing where it is but one."""
        if first >= end:
            return
        for word, put in (("or", "false"), ("and", "true")):
            parts = self.split(first, end, word)
            if len(parts) > 1:
                said = [" ".join(self.words[a:b]) for a, b in parts]
                by_id = any(BY_ID.search(each) for each in said)
                for part, text in zip(parts, said, strict=True):
                    if not (by_id and word == "and" and BY_WAREHOUSE.fullmatch(text)):
                        yield self.edit(where, f"{word}-left-out", *part, put)
                    yield from self.operands(where, *part)
                return
        if self.words[first] == "(" and self.closes.get(first) == end - 1:
            yield from self.operands(where, first + 1, end - 1)

    def filter(self, where: str, kind: str, first: int, end: int) -> Iterator[Edit]:
        """A condition that keeps rows: let all through, or those that one part would keep away."""
        if first < end and self.words[first:end] != ["true"]:
            parts = list(self.operands(where, first, end))
            yield from parts or [self.edit(where, kind, first, end, "true")]

    def branch(self, where: str, first: int, end: int) -> Iterator[Edit]:
        """The condition of a branch: never taken, always taken, or on part of it."""
        after = self.words[end : self.until(end + 1, frozenset({"else", "elsif", "end", "when"}))]
        guards = any(word.startswith("refuse") or word == "raise" for word in after)
        yield self.edit(where, "guard-off" if guards else "never", first, end, "false")
        if not guards:
            yield self.edit(where, "always", first, end, "true")
        yield from self.operands(where, first, end)

    def clause(self, where: str, at: int) -> Iterator[Edit]:
        """What begins with one of a few words: conditions, conflicts, checks."""
        word, after, before = self.words[at], self.word(at + 1), self.word(at - 1)
        if word in {"if", "elsif", "when"}:
            yield from self.branches(where, at)
        elif word in {"where", "having"}:
            yield from self.filter(where, word, at + 1, self.until(at + 1, ENDS_A_CONDITION))
        elif word == "join":
            on = self.until(at + 1, frozenset({"on", "using", "join", "where", ";"}))
            if self.word(on) == "on":
                end = self.until(on + 1, ENDS_A_CONDITION | {","})
                yield from self.filter(where, "on", on + 1, end)
        elif after == "(" and (word == "check" or (word == "using" and where.startswith('"'))):
            yield from self.filter(where, word, at + 2, self.closes[at + 1])
        elif word == "conflict" and before == "on":
            do = self.until(at, frozenset({"do"}))
            if self.word(do + 1) == "nothing":
                yield self.edit(where, "conflict", at - 1, do + 2, "")
            else:
                end = self.until(do + 2, frozenset({"returning", ";"}))
                yield self.edit(where, "conflict", do + 1, end, "nothing")

    def branches(self, where: str, at: int) -> Iterator[Edit]:
        """`if`, `elsif` and `when`: of statements, of `case`, of loops, of triggers."""
        word, before = self.words[at], self.word(at - 1)
        inside = self.within[at]
        if word == "when" and inside == -1:
            yield from self.filter(where, "when", at + 2, self.closes[at + 1])
        elif word == "when" and before in {"exit", "continue"}:
            yield from self.branch(where, at + 1, self.until(at + 1, frozenset({";"})))
        elif word != "when" or (self.words[inside] == "case" and self.word(inside + 1) == "when"):
            end = self.until(at + 1, frozenset({"then", ";"}))
            if self.word(end) == "then" and before != "end":
                yield from self.branch(where, at + 1, end)

    def lock(self, where: str, at: int) -> Iterator[Edit]:
        """`for update` and its like: without it; without its `skip locked` or `nowait`."""
        if self.words[at] != "for":
            return
        end = self.until(at + 1, frozenset({";"}))
        said = " ".join(self.words[at + 1 : min(end, at + 10)])
        if found := re.match(
            r"(no key update|update|key share|share)( of \w+)?( skip locked| nowait)?", said
        ):
            last = at + 1 + len(found[0].split())
            yield self.edit(where, "lock", at, last, "")
            if found[3]:
                yield self.edit(where, "lock", last - len(found[3].split()), last, "")

    def value(self, where: str, at: int) -> Iterator[Edit]:
        """Bounds, numbers, defaults, and what is called for its effect."""
        token, word = self.tokens[at], self.words[at]
        if word in COMPARISONS:
            yield self.edit(where, "bound", at, at + 1, COMPARISONS[word])
        elif token.kind == "NUMBER" and word.isdigit() and self.word(at - 2) != "fillfactor":
            put = {"0": "1", "1": "0"}.get(word, str(int(word) + 1))
            yield self.edit(where, "number", at, at + 1, put)
        elif word in KEEP_THE_FIRST and self.word(at + 1) == "(":
            comma = self.until(at + 2, frozenset({","}))
            if self.word(comma) == ",":
                first = self.source[self.tokens[at + 2].start : self.tokens[comma - 1].end]
                yield self.edit(where, word, at, self.closes[at + 1] + 1, f"({first})")
        elif word == "perform" and not self.word(at + 1).startswith("refuse"):
            yield self.edit(where, "not-done", at, self.until(at + 1, frozenset({";"})), "null")

    def statement(self, where: str, kind: str, first: int, end: int) -> Iterator[Edit]:
        """All edits of one statement."""
        if kind == "trigger":
            yield self.edit(where, "trigger", first, end, "")
        if kind == "index" and self.words[first + 1] == "unique":
            yield self.edit(where, "unique", first + 1, first + 2, "")
        for at in range(first, end):
            if self.is_said(at):
                continue
            name = where
            if kind == "table":
                name = self.constraint(where, at)
                word = self.words[at]
                if word in {"unique", "foreign"} and self.word(at - 2) == "constraint":
                    item = self.until(at, frozenset({","}))
                    yield self.edit(name, word, at, item, "check (true)")
            if kind != "index":
                yield from self.clause(name, at)
            if kind in {"function", "view"}:
                yield from self.lock(where, at)
            if kind in {"function", "view"} or "constraint" in self.words[max(0, at - 30) : at]:
                yield from self.value(name, at)

    def is_said(self, at: int) -> bool:
        """Whether a token is part of what a refusal says."""
        while (at := self.within[at]) >= 0:
            if self.word(at - 1) == "refuse":
                return True
        return False

    def constraint(self, table: str, at: int) -> str:
        """The name of the constraint in which a token of a table stands."""
        while at > 0 and self.words[at] not in {"constraint", ";"}:
            at -= 1
        return self.words[at + 1] if self.words[at] == "constraint" else table

    def edits(self) -> Iterator[Edit]:
        """All edits of the file."""
        first, where, kind = 0, "", ""
        for at, word in enumerate(self.words):
            if word == ";" and self.within[at] == -1:
                text = self.source[self.tokens[first].start : self.tokens[at].end]
                if found := NAMED.match(text):
                    kind, where = found[1].lower(), found[2]
                elif self.words[first] in {"comment", "grant", "revoke", "do", "set", "alter"}:
                    kind, where = "", ""
                if kind:
                    yield from self.statement(where, kind, first, at)
                first = at + 1
        # A policy of several tables is written by a loop, as a text.
        for found in re.finditer(r"'using \((exists .*)\)'", self.source):
            yield Edit("policies", "using", *found.span(1), "true")
