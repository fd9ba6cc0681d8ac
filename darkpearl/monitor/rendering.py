"""Templates, and how amounts, times and statuses are shown. Everything is escaped but templates."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup

from darkpearl.gateways.money import minor_units

TEMPLATES = Path(__file__).with_name("templates")
NOTHING = Markup('<span class="none">\N{EN DASH}</span>')
MINUTE, HOUR, DAY = 60, 3600, 86400

TONES = {
    "ok": (
        "✓",
        (
            "completed finished done fulfilled shipped captured refunded authorized applied won"
            " alive closed"
        ),
    ),
    "run": ("▸", "running fulfilling advance settle paid reserved"),
    "wait": ("◷", "pending waiting requested payment_processing capture_requested void_requested"),
    "back": ("↺", "compensating half_open backing_off stale acknowledged payment_failed"),
    "off": ("∅", "cancelled compensated voided declined lost stopped"),
    "bad": ("!", "stuck failed refused unmatched open silent"),
}
"""How each status looks: a sign, for those who don't see colours, and the statuses it is of."""
_TONE = {
    status: (tone, sign) for tone, (sign, statuses) in TONES.items() for status in statuses.split()
}


def status(value: str | None) -> Markup:
    """A status as its sign and its word."""
    if not value:
        return NOTHING
    tone, sign = _TONE.get(value, ("off", "·"))
    return Markup('<span class="status {}"><i aria-hidden="true">{}</i>{}</span>').format(
        tone, sign, words(value)
    )


def words(value: object) -> str:
    """A name of the database as words."""
    return str(value).replace("_", " ")


def count(value: float | None) -> Markup | str:
    """A whole number, in groups of three digits."""
    return NOTHING if value is None else f"{value:,.0f}"


def money(amount: Decimal | float | None, currency: str | None) -> Markup:
    """An amount in major units with all decimals of its currency; never rounded."""
    if amount is None:
        return NOTHING
    exact = Decimal(amount)
    decimals = max(minor_units(currency or ""), -int(exact.normalize().as_tuple().exponent))
    return Markup('<span class="money">{}&nbsp;<small>{}</small></span>').format(
        f"{exact:,.{decimals}f}", currency or ""
    )


def moment(value: str | None) -> Markup:
    """A time, which the browser shows as how long ago; absolute on hover."""
    if not value:
        return NOTHING
    at = datetime.fromisoformat(value).astimezone(UTC)
    return Markup('<dp-time at="{}" title="{}"></dp-time>').format(
        at.isoformat(), at.strftime("%Y-%m-%d %H:%M:%S UTC")
    )


def seconds(value: float | None) -> Markup | str:
    """A duration in the unit that says most."""
    if value is None:
        return NOTHING
    value = float(value)
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < MINUTE:
        return f"{value:.1f} s" if value < MINUTE / 6 else f"{value:.0f} s"
    for unit, size in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if value >= size:
            return f"{value / size:.0f} {unit}"
    return ""


def milliseconds(value: float) -> float:
    """A duration as a chart takes it."""
    return round(1000 * float(value), 1)


def short(value: str | None) -> Markup:
    """The end of an id, which differs where its beginning, a time, doesn't; all of it on hover."""
    if not value:
        return NOTHING
    return Markup('<code class="id" title="{}">…{}</code>').format(value, str(value)[-8:])


def link(path: str, asked: Mapping[str, str], **changed: object) -> str:
    """The address of a screen with these filters, some of them changed; None takes one away."""
    filters = {**asked, **changed}
    query = urlencode({name: each for name, each in filters.items() if each not in {None, ""}})
    return f"/monitor/{path}".rstrip("/") + (f"?{query}" if query else "")


def without_none(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """What is said, without what isn't."""
    return {name: value for name, value in pairs.items() if value is not None}


def environment() -> jinja2.Environment:
    """The templates, compiled once."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "status": status, "words": words, "count": count, "money": money, "moment": moment,
        "seconds": seconds, "milliseconds": milliseconds, "short": short,
        "without_none": without_none,
    }  # fmt: skip
    made.globals |= {"link": link, "NOTHING": NOTHING}
    return made


_templates = environment()
_ADDRESS = re.compile(r'((?:href|action|hx-get|hx-post)="/monitor(?!/static)[^"?]*)(?:\?([^"]*))?"')


def keep_cell(html: str, cell: int) -> str:
    """The same, whose addresses lead to screens and actions of a cell; 0: of the only one.

    Here and not in each template, so that none can forget it. An address that names a cell stays.
    """
    if not cell:
        return html

    def kept(found: re.Match[str]) -> str:
        query = found[2] or ""
        if re.search(r"(^|[;&])cell=", query):
            return found[0]
        return f'{found[1]}?{query}{"&amp;" if query else ""}cell={cell}"'

    return _ADDRESS.sub(kept, html)


def render(template: str, **context: Any) -> str:
    """A template with what it shows."""
    return _templates.get_template(template).render(**context)
