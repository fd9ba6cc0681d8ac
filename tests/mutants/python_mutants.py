"""What is taken away from Python: conditions, bounds, handlers, refusals, returns, calls."""

import ast

from mutant import Edit

SWAPPED: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.In: ("in", "not in"),
}
LEAVES = (ast.Raise, ast.Return, ast.Continue, ast.Break)
SAYS = ("log", "_log", "logger", "logs")
"""Names of what only tells: without the call, nothing else is different."""


class Edits(ast.NodeVisitor):
    """Collects the edits of one module."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.found: list[Edit] = []
        self.names: list[str] = []
        self.visit(ast.parse(source))

    def place(self, line: int, column: int) -> int:
        """An offset in characters; ast counts the bytes of a line."""
        begin = self.lines[line - 1]
        text = self.source[begin : self.lines[line]]
        return begin + len(text.encode()[:column].decode())

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """From where to where a node stands."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.place(node.lineno, node.col_offset)
        return start, self.place(node.end_lineno, node.end_col_offset)

    def add(self, kind: str, node: ast.expr | ast.stmt, put: str) -> None:
        """An edit that puts something in the place of a node."""
        where = ".".join(self.names) or "module"
        self.found.append(Edit(where, kind, *self.span(node), put))

    def code(self, node: ast.expr) -> str:
        """What a node says."""
        start, end = self.span(node)
        return self.source[start:end]

    def _named(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.names.append(node.name)
        for each in node.body:
            self.visit(each)
        if not isinstance(node, ast.ClassDef):
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                if default:
                    self.visit(default)
        self.names.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _named  # noqa: N815

    def visit_If(self, node: ast.If) -> None:
        """A condition that guards is off; any other is the other way round."""
        if isinstance(node.body[-1], LEAVES) and not node.orelse:
            self.add("guard-off", node.test, "False")
        else:
            self.add("negated", node.test, f"not ({self.code(node.test)})")
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """A loop is not entered."""
        self.add("never", node.test, "False")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """One of two values is the other."""
        self.add("negated", node.test, f"not ({self.code(node.test)})")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """A filter lets everything through."""
        for test in node.ifs:
            self.add("filter-off", test, "True")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """An operand is left out."""
        word = " and " if isinstance(node.op, ast.And) else " or "
        for value in node.values:
            rest = [f"({self.code(each)})" for each in node.values if each is not value]
            self.add(f"{word.strip()}-left-out", node, f"({word.join(rest)})")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """A bound is in instead of out; equal is unequal."""
        if len(node.ops) == 1 and (swap := SWAPPED.get(type(node.ops[0]))):
            right = self.code(node.comparators[0])
            self.add("bound", node, f"{self.code(node.left)} {swap[1]} {right}")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """A number is another, true is false."""
        if isinstance(node.value, bool):
            self.add("number", node, str(not node.value))
        elif isinstance(node.value, int):
            self.add("number", node, {0: "1", 1: "0"}.get(node.value, str(node.value + 1)))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Texts for people are left as they are."""

    def visit_Raise(self, node: ast.Raise) -> None:
        """Nothing is raised."""
        self.add("not-raised", node, "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        """Nothing is returned."""
        if node.value and not (isinstance(node.value, ast.Constant) and not node.value.value):
            self.add("returns-nothing", node, "return None")
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        """An error isn't caught."""
        if node.type:
            self.add("not-caught", node.type, "()")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """What is called for its effect isn't."""
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(call, ast.Call) and not ast.unparse(call.func).startswith(SAYS):
            self.add("not-done", node, "pass")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """What a log says is left as it is."""
        if not ast.unparse(node.func).startswith(SAYS):
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """A type says nothing at run time; what is looked up is visited."""
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """The value, not the type."""
        if node.value:
            self.visit(node.value)
