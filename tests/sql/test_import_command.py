"""`darkpearl import` and `darkpearl export`: the command, and files that go round."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from shop import Shop

from darkpearl import imports

Run = Callable[..., Awaitable[tuple[int | None, str, str]]]


@pytest.fixture
def run(database_url: str) -> Run:
    """Runs the command; its exit code, and what it says on both outputs."""

    async def command(*arguments: str, typed: bytes = b"") -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "darkpearl", *arguments),
            env={**os.environ, "DARKPEARL_DATABASE_URL": database_url},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, errors = await process.communicate(typed)
        return process.returncode, said.decode(), errors.decode()

    return command


async def test_a_file_is_imported_or_every_bad_line_is_named(
    shop: Shop, run: Run, tmp_path: Path
) -> None:
    """Bad lines are named by where they begin, and nothing is imported while there is one."""
    file = tmp_path / "products.csv"
    file.write_text(
        '\ufeffsku,name,unit_price\nA,"One\nand more",1\n\nB,Two\nC,Three,3,4\nD,Four,x\nE,Five,5\n'
    )
    code, said, errors = await run("import", "products", str(file))
    assert code == 1
    assert errors.splitlines() == [
        f"{file}:5: has 2 fields, and the header has 3",
        f"{file}:6: has 4 fields, and the header has 3",
        f"{file}:7: unit_price is no amount",
    ]
    assert said == "5 lines, 3 bad: nothing done; 0 products new or changed\n"
    assert await shop.rows("select from products") == []
    code, said, _ = await run(
        "import", "products", "--skip-bad", "-", typed=await asyncio.to_thread(file.read_bytes)
    )
    assert (code, said) == (0, "5 lines, 3 bad left out; 2 products new or changed\n")
    assert await shop.values("select name from products order by sku") == ["One\nand more", "Five"]


async def test_wrong_input_is_one_line(shop: Shop, run: Run, tmp_path: Path) -> None:
    """A file that is no table, or that can't be opened, is one line with exit code 2."""
    nowhere = str(tmp_path / "nowhere" / "file.csv")
    for arguments, typed, told in [
        (("import", "products", "-"), b"sku,nmae\nA,One\n", "standard input: there is no column"),
        (("import", "products", nowhere), b"", f"{nowhere} can't be read: "),
        (("export", "products", nowhere), b"", f"{nowhere} can't be written: "),
    ]:
        code, said, errors = await run(*arguments, typed=typed)
        assert (code, said, errors.count("\n")) == (2, "", 1), errors
        assert errors.startswith(f"darkpearl: {told}")
    assert await shop.rows("select from products") == []


@pytest.mark.parametrize("kind", ["products", "inventory", "movements", "orders"])
async def test_what_is_exported_is_imported_without_a_change(
    shop: Shop, database_url: str, kind: str
) -> None:
    """A file goes round: what an export has written, an import takes, and has nothing to do."""
    one, other = await shop.product(sku="A", on_hand=9), await shop.product(sku="B", on_hand=9)
    await shop.run("select transfer_stock(%s, %s, %s, 2)", shop.lisbon, shop.rotterdam, one)
    await shop.fulfilled((one, 1), (other, 2))
    pieces = [piece async for piece in imports.export(database_url, kind)]
    lines = b"".join(pieces).splitlines(keepends=True)
    assert len(lines) > 2

    def tell(line: int, problem: str) -> None:
        raise AssertionError(f"{line}: {problem}")

    told = await imports.import_lines(database_url, kind, lines, skip_bad=False, tell=tell)
    assert told == (len(lines) - 1, 0, 0)
