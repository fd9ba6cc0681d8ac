"""Alerts and dashboard in docs/deploy: what they name exists, fires, and has its section."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from shop import Shop

from darkpearl import doctor
from darkpearl.telemetry import metrics

DOCS = Path(__file__).parents[2] / "docs"
RULES = DOCS / "deploy/prometheus/alerts.yml"
RULES_TEST = RULES.with_name("alerts_test.yml")
DASHBOARD = DOCS / "deploy/grafana/darkpearl.json"
PROMTOOL = shutil.which("promtool")
OF_SCRAPES = {"instance", "job", "le"}
"""Labels that Prometheus gives, and the one of buckets."""
_NAME = re.compile(r"\b(?:darkpearl|process)_\w+")
_SELECTOR = re.compile(r"\b((?:darkpearl|process)_\w+)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without) \(([^)]*)\)")
_IN_TEXT = re.compile(r"{{\s*(?:\$labels\.)?(\w+)")

Labels = dict[str, dict[str, set[str]]]
"""By the name of a sample: the values that each of its labels was seen with."""


def alerts() -> list[dict[str, Any]]:
    """All rules, in their order."""
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard, rows among them."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def asked() -> Iterator[tuple[str, str, str]]:
    """What every alert and panel asks: where, the expression, the text that goes with it."""
    for rule in alerts():
        yield rule["alert"], rule["expr"], rule["annotations"]["summary"]
    for panel in panels():
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"], target["legendFormat"]


def promtool(*arguments: str | Path) -> None:
    """Run it; what it says is the failure."""
    if not PROMTOOL:
        pytest.skip("there is no promtool (Debian's package prometheus has it)")
    command: list[str | Path] = [PROMTOOL, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=RULES.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
async def exported(
    api: httpx.AsyncClient,
    shop: Shop,
    order_body: Callable[..., dict[str, Any]],
    run_sagas: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> Labels:
    """What a live API tells after a few orders, and a process whose listener has worked."""
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)
    await api.get("/metrics")
    for quantity in (1, 1000):
        await api.post("/orders", json=order_body((0, quantity)))
    await run_sagas()
    await shop.turn_clock(10)
    await shop.run("select run_audit()")
    for upkeep in ("backup", "reconciliation"):
        await shop.run("select record_upkeep(%s, null, '{\"differences\": 0}')", upkeep)
    async with shop.acting_as("darkpearl_listener"):
        report = "select report_listener(new_id(), 'here', 7, '1', 'mock', 'closed', 'idle', 0)"
        await shop.run(report)
    metrics.passes.labels("advance").observe(0.1)
    metrics.outages.labels("53100").inc()
    metrics.gateway_calls.labels("mock", "authorize", "approved").observe(0.1)
    seen: Labels = defaultdict(lambda: defaultdict(set))
    page = (await api.get("/metrics")).text + await of_two_cells()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = seen[sample.name]
            for name, value in sample.labels.items():
                labels[name].add(value)
    return seen


async def of_two_cells() -> str:
    """The same of a database that is one of two cells, and home."""

    async def fetch(query: str, _: dict[str, Any]) -> list[dict[str, Any]]:
        if query == metrics._STATE:
            return [dict.fromkeys([column for column, _ in metrics.GAUGES.values()], 0)]
        if query == metrics._CATALOGUE:
            return [{"cell": "north", "kept_bytes": 1, "lag_seconds": 0.0}]
        return [{"saga_type": "refund", "stuck": 0}] if query == metrics._STUCK else []

    async def engines() -> list[metrics.Engine]:
        return [metrics.Engine(fetch, "home")]

    return (await metrics.Page(engines).text()).decode()


async def test_what_is_asked_is_exported(exported: Labels) -> None:
    """Every metric and label of rules and dashboard is told by a live API, with such a value."""
    wrong = []
    for where, expression, text in asked():
        names = set(_NAME.findall(expression))
        wrong += [f"{where}: no metric {name}" for name in names - exported.keys()]
        theirs = OF_SCRAPES.union(*(exported[name] for name in names if name in exported))
        used = {
            each.strip() for found in _GROUPING.findall(expression) for each in found.split(",")
        }
        used |= set(_IN_TEXT.findall(text)) - {"value"}
        wrong += [f"{where}: no label {label}" for label in used - theirs]
        for name, matchers in _SELECTOR.findall(expression):
            for label, operator, value in _MATCHER.findall(matchers):
                values = exported[name].get(label)
                if label not in OF_SCRAPES and values is None:
                    wrong.append(f"{where}: {name} has no label {label}")
                elif values and operator == "=" and value not in values:
                    wrong.append(f"{where}: no {label} is {value}")
    assert wrong == []


async def test_what_is_exported_is_asked(exported: Labels) -> None:
    """The dashboard shows every metric of ours, and every label but a gateway's name is used."""
    shown = set(_NAME.findall(" ".join(expression for _, expression, _ in asked())))
    ours = {name for name in exported if name.startswith("darkpearl_")}
    histograms = {name.removesuffix("_bucket") for name in ours if name.endswith("_bucket")}
    alike = {f"{name}_{part}": name for name in histograms for part in ("bucket", "count", "sum")}
    assert {alike.get(name, name) for name in ours} == {
        alike.get(name, name) for name in shown if name.startswith("darkpearl_")
    }
    words = " ".join(expression + text for _, expression, text in asked())
    labels = {label for name in ours for label in exported[name]} - {"gateway"}
    assert {label for label in labels if not re.search(rf"\b{label}\b", words)} == set()


def test_every_alert_has_its_section_and_its_line_of_the_doctor() -> None:
    """In docs/alerts.md, in their order, with the severity; runbook_url leads there."""
    page = (DOCS / "alerts.md").read_text()
    sections = dict(re.findall(r"^## (\S+)\n\n(.+)$", page, re.MULTILINE))
    lines = {doctor.name_of(each) for each in (*doctor.CHECKS, *doctor.CELLS)}
    assert list(sections) == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        notes, told = rule["annotations"], sections[rule["alert"]]
        assert notes["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"
        words = rule["labels"]["severity"].capitalize()
        words += f", after {rule['for']}." if "for" in rule else "."
        if line := notes.get("doctor"):
            assert line in lines
            words += f" Doctor: [{line}](operations.md#{line})."
        assert told == words
    linked = set(re.findall(r"\]\(operations\.md#([\w-]+)\)", page))
    headings = re.findall(r"^#+ (.+)$", (DOCS / "operations.md").read_text(), re.MULTILINE)
    assert linked <= {heading.lower().replace(" ", "-") for heading in headings}


def test_every_alert_is_made_to_fire() -> None:
    """Each has a test in which nothing is said at first and it fires later."""
    fired = []
    for test in yaml.safe_load(RULES_TEST.read_text())["tests"]:
        quiet, *firing = test["promql_expr_test"]
        assert (quiet["expr"], quiet["exp_samples"]) == ("ALERTS", [])
        fired += [
            re.search(r'alertname="(\w+)".*"firing"', sample["labels"])
            for each in firing
            for sample in each["exp_samples"]
        ]
    assert {found[1] for found in fired if found} == {rule["alert"] for rule in alerts()}


def test_alerts_fire_as_their_tests_say() -> None:
    """Prometheus' own tool takes the rules, and each fires on its trouble and not before."""
    promtool("check", "rules", RULES.name)
    promtool("test", "rules", RULES_TEST.name)


def test_the_dashboard_asks_what_prometheus_understands(tmp_path: Path) -> None:
    """Its expressions are valid, once Grafana has put its variables in."""
    rules = [
        {"record": f"panel:{panel['id']}:{n}", "expr": target["expr"].replace("$job", ".+")}
        for panel in panels()
        for n, target in enumerate(panel.get("targets", []))
    ]
    for rule in rules:
        rule["expr"] = rule["expr"].replace("$__rate_interval", "5m")
        assert "$" not in rule["expr"]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def test_the_dashboard_can_be_imported() -> None:
    """Ids are its own, panels lie side by side within 24 columns, and ask the chosen source."""
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    assert all(panel["title"] for panel in found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        area = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not area & taken, panel["title"]
        taken |= area
    for target in (target for panel in found for target in panel.get("targets", [])):
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    tops = [panel["gridPos"]["y"] for panel in found]
    assert all(above <= below for above, below in pairwise(tops))
