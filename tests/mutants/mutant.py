"""A mutant: one edit of one file, with a name that outlives edits elsewhere."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """The text from `start` to `end` becomes `put`; `kind` says by which rule, `where` in what."""

    where: str
    kind: str
    start: int
    end: int
    put: str


@dataclass(frozen=True)
class Mutant:
    """An edit of a file; `before` and `after` are the lines that it changes, for people."""

    name: str
    path: str
    edit: Edit
    line: int
    before: str
    after: str

    def text(self, source: str) -> str:
        """The file with the edit."""
        return source[: self.edit.start] + self.edit.put + source[self.edit.end :]


def named(path: Path, source: str, edits: Iterable[Edit]) -> Iterator[Mutant]:
    """The edits of a file as mutants, each once.

    A name holds what is changed and where, not the number of its line: it stays the same until
    the lines that it changes do.
    """
    seen: Counter[str] = Counter()
    for edit in sorted(set(edits), key=lambda each: (each.start, each.end, each.put)):
        first = source.rfind("\n", 0, edit.start) + 1
        last = source.find("\n", edit.end)
        last = len(source) if last < 0 else last
        before = source[first:last]
        after = source[first : edit.start] + edit.put + source[edit.end : last]
        told = f"{edit.where} {edit.kind} {' '.join(before.split())} {' '.join(after.split())}"
        seen[told] += 1
        digest = hashlib.sha256(f"{told} {seen[told]}".encode()).hexdigest()[:6]
        name = f"{path.stem}/{edit.where}/{edit.kind}-{digest}"
        line = source.count("\n", 0, edit.start) + 1
        yield Mutant(name, str(path), edit, line, before, after)
