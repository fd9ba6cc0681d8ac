"""bench/: what stands outside the package and would break unseen."""

import importlib
import pkgutil
import re
from pathlib import Path

import bench
from bench.peers import steps

ROOT = Path(__file__).parents[2]


def test_other_engines_can_ask_the_gateway() -> None:
    """The steps that other engines are measured with charge by the gateway's present contract."""
    order = "01890000-0000-7000-8000-000000000001"
    assert steps.charge_now(order, "20.00").startswith("mock-")


def test_every_benchmark_is_described() -> None:
    """docs/performance.md has a section for each benchmark."""
    source, page = (ROOT / "bench/__main__.py").read_text(), ROOT / "docs/performance.md"
    names = set(re.findall(r"^async def (\w+)\(running: ", source, re.MULTILINE))
    sections = set(re.findall(r"^## ([a-z_]+)$", page.read_text(), re.MULTILINE))
    assert names
    assert sections == names


def test_every_benchmark_can_be_imported() -> None:
    """No benchmark names what the package doesn't have any more."""
    names = {module.name for module in pkgutil.iter_modules(bench.__path__)} - {"__main__"}
    assert "bare" in names
    for name in sorted(names):
        importlib.import_module(f"bench.{name}")
