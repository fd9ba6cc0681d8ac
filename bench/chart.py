"""docs/performance.svg: bars of the newest medians in the results, drawn by hand."""

import json
from html import escape
from pathlib import Path
from typing import Any

CHART = Path("docs") / "performance.svg"
PANELS = (
    ("peers", "orders_per_second", "The same three steps on the same tables: orders per second"),
    (
        "peers_latency",
        "p50_ms",
        "From an order's commit to fulfilled, one at a time, p50, milliseconds",
    ),
    ("floor", "orders_per_second", "Ready orders worked off, per second"),
    ("http", "orders_per_second", "POST /orders from 16 clients, per second"),
    ("end_to_end", "orders_per_second", "16 clients placing orders by SQL: completed per second"),
    ("hot", "orders_per_second", "One product for all; 30 % can't be served: per second"),
    ("warehouses", "orders_per_second", "20,000 shelves in how many warehouses: per second"),
    ("growth", "orders_per_second", "Beside finished orders: per second"),
    ("bell", "ratio", "Inserts per second, as a share of those without a bell"),
    ("open_loop", "p99_ms", "From an order's due time to fulfilled, p99, milliseconds"),
)
WIDTH, LABELS, BAR, GAP, TITLE = 820, 300, 18, 6, 34
BARS = WIDTH - LABELS - 90
OURS, OTHERS = "#3b6ea5", "#a9b4bf"
BASELINES = (
    *("floor", "saga switched off", "no trigger", "NOTIFY", "bare ASGI"),
    *("DBOS", "Procrastinate", "PgQueuer", "Absurd"),
)


def chart(results: Path) -> Path:
    """Draw each benchmark's newest run; one that was never run is left out."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in results.read_text().splitlines():
        row = json.loads(line)
        if str(row.get("round", "")).startswith("median"):
            runs.setdefault(row["bench"], {}).setdefault(row["run"], []).append(row)
    parts: list[str] = []
    y = 10
    for bench, figure, title in PANELS:
        if bench not in runs:
            continue
        rows = runs[bench][max(runs[bench])]
        parts.append(_text(10, y + 20, title, "font-weight='bold'"))
        y += TITLE
        most = max(row[figure] for row in rows)
        for row in rows:
            parts.extend(_bar(y, row["variant"], row[figure], row[figure] / most))
            y += BAR + GAP
        y += GAP
    CHART.write_text(
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {y + 10}' "
        "font-family='sans-serif' font-size='13'>\n"
        f"<rect width='{WIDTH}' height='{y + 10}' fill='white'/>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )
    return CHART


def _bar(y: int, label: str, value: float, share: float) -> list[str]:
    width = max(1, round(BARS * share))
    colour = OTHERS if label.startswith(BASELINES) else OURS
    shown = f"{value:,.2f}" if value < 100 else f"{value:,.0f}"  # noqa: PLR2004 - digits enough
    return [
        _text(LABELS - 8, y + 14, label, "text-anchor='end'"),
        f"<rect x='{LABELS}' y='{y}' width='{width}' height='{BAR}' rx='2' fill='{colour}'/>",
        _text(LABELS + width + 6, y + 14, shown),
    ]


def _text(x: int, y: int, text: str, more: str = "") -> str:
    return f"<text x='{x}' y='{y}' {more}>{escape(text)}</text>"
