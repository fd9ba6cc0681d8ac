"""Settings: one frozen struct, and the only reader of the environment.

A setting is one field: its type and limits are checked, its description is its documentation.
`DARKPEARL_PORT=9000` sets the field `port`. A variable set to the empty string counts as not
set; an unknown DARKPEARL_ name is an error, because a misspelt one would do nothing in silence.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

import msgspec
from msgspec import Meta

PREFIX = "DARKPEARL_"
FOREIGN = "DARKPEARL_TEST_"
"""Names with this prefix belong to the test suite and are left alone."""
ANY_PROXY = "*"
"""Of DARKPEARL_TRUSTED_PROXIES: whoever connects is a proxy, and says who connected to it."""

ADDRESS = r"^(postgres(ql)?://([^@/?#]*@)?[^@]*|\w+ *=.*)$"
"""One @ at most, and before the host: otherwise a part of the password would be taken for it."""
_ADDRESS_IN_WORDS = "a postgresql:// URL (other characters as %XX) or key=value pairs"
SHORTEST_WEBHOOK_SECRET = 16
UNITS = ("seconds", "hours")
"""A setting whose name ends in one of these is a number of them."""
VISITOR_RATE_LIMIT = 600
"""Requests per minute of one address in production, where the settings say nothing else."""
ORIGINS = r"^(\*|https?://[^/, ]+(,https?://[^/, ]+)*)?$"

TracesExporter = Literal["otlp", "console"]


class ConfigError(ValueError):
    """An environment variable that is unknown or has a value that is not allowed."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How one process of DarkPearl runs."""

    database_url: Annotated[
        Annotated[str, Meta(pattern=ADDRESS)] | None,
        Meta(
            description="PostgreSQL 15 to 18 to run on; not set, the embedded server is used",
            extra={"allowed": _ADDRESS_IN_WORDS, "secret": True},
        ),
    ] = None
    api_database_url: Annotated[
        Annotated[str, Meta(pattern=ADDRESS)] | None,
        Meta(
            description="address at which the API logs in as darkpearl_api, if not DATABASE_URL",
            extra={"allowed": _ADDRESS_IN_WORDS, "secret": True},
        ),
    ] = None
    listener_database_url: Annotated[
        Annotated[str, Meta(pattern=ADDRESS)] | None,
        Meta(
            description="address at which the listener logs in, if not DATABASE_URL",
            extra={"allowed": _ADDRESS_IN_WORDS, "secret": True},
        ),
    ] = None
    environment: Annotated[
        Literal["development", "production"],
        Meta(description="in development tokens can be made here; in production they can't"),
    ] = "development"
    jwt_secret: Annotated[
        Annotated[str, Meta(min_length=32)] | None,
        Meta(
            description="secret that signs tokens (HS256); development makes one in HOME",
            extra={"allowed": "a text of 32 characters or more", "secret": True},
        ),
    ] = None
    jwt_jwks: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="public keys of the tokens' issuer (RS256, ES256)",
            extra={"allowed": "an http(s):// URL or a path of a JWK set"},
        ),
    ] = None
    jwt_issuer: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="issuer that tokens must name; not set, any",
            extra={"allowed": "a text"},
        ),
    ] = None
    jwt_audience: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="audience that tokens must name; not set, any",
            extra={"allowed": "a text"},
        ),
    ] = None
    jwt_leeway_seconds: Annotated[
        float,
        Meta(ge=0, le=300, description="difference allowed between the clocks of issuer and API"),
    ] = 10.0
    home: Annotated[
        Path, Meta(description="folder of the embedded server: its data, log and secrets")
    ] = Path(".darkpearl")
    host: Annotated[str, Meta(min_length=1, description="address the API listens on")] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="port the API listens on; 0 takes a free one")
    ] = 8000
    batch_size: Annotated[
        int, Meta(ge=1, le=5000, description="sagas the listener advances at most in one pass")
    ] = 1000
    poll_seconds: Annotated[
        float,
        Meta(gt=0, le=3600, description="longest sleep of the listener when no bell rings"),
    ] = 1.0
    shutdown_seconds: Annotated[
        float, Meta(ge=0, le=600, description="time to finish work in hand after a stop signal")
    ] = 10.0
    gateway: Annotated[
        Literal["mock", "http", "stripe"], Meta(description="gateway that is asked for payments")
    ] = "mock"
    gateway_url: Annotated[
        Annotated[str, Meta(pattern=r"^https?://[^/]")] | None,
        Meta(
            description="address of a payment service that speaks the contract of docs/gateway.md",
            extra={"allowed": "an http:// or https:// URL"},
        ),
    ] = None
    gateway_token: Annotated[
        str | None,
        Meta(
            description="bearer token for that service", extra={"allowed": "a text", "secret": True}
        ),
    ] = None
    webhook_secret: Annotated[
        str | None,
        Meta(
            description="secret that signs the gateway's webhooks; several, divided by commas, "
            "while it is being changed",
            extra={"allowed": "a text", "secret": True},
        ),
    ] = None
    webhooks_to_private_addresses: Annotated[
        bool,
        Meta(
            description="webhooks may be sent to private and loopback addresses",
            extra={"allowed": "true or false"},
        ),
    ] = False
    stripe_api_key: Annotated[
        Annotated[str, Meta(pattern="^(sk|rk)_")] | None,
        Meta(
            description="secret or restricted API key of the Stripe account",
            extra={"allowed": "a text that begins with sk_ or rk_", "secret": True},
        ),
    ] = None
    mock_approval_rate: Annotated[
        float, Meta(ge=0, le=1, description="share of payments the mock gateway approves")
    ] = 0.9
    mock_latency_seconds: Annotated[
        float, Meta(ge=0, le=600, description="time the mock gateway takes to answer")
    ] = 0.0
    mock_seed: Annotated[
        int | None, Meta(description="makes the mock gateway's answers repeatable")
    ] = None
    mock_script: Annotated[
        str,
        Meta(
            description="answers of the mock gateway to an amount or a token",
            extra={"allowed": "a text such as 13.37=declined:stolen_card, tok_slow=pending:30"},
        ),
    ] = ""
    operations: Annotated[
        str,
        Meta(
            description="external operations of saga types of one's own, and who makes them",
            extra={"allowed": "a text such as buy_label=labels:buy_label, divided by commas"},
        ),
    ] = ""
    payment_concurrency: Annotated[
        int, Meta(ge=1, le=1000, description="payments in flight at once in one listener")
    ] = 64
    payment_timeout_seconds: Annotated[
        float, Meta(ge=0.01, le=3600, description="time the gateway may take for one call")
    ] = 10.0
    payment_failures: Annotated[
        int,
        Meta(
            ge=1, le=1000, description="payments in a row without an answer after which calls pause"
        ),
    ] = 10
    pool_size: Annotated[
        int,
        Meta(
            ge=2,
            le=100,
            description="database connections of the API at most; a quarter is for visitors",
        ),
    ] = 8
    idempotency_key_hours: Annotated[
        int,
        Meta(ge=1, le=8760, description="time the answer under an idempotency key is kept"),
    ] = 24
    rate_limit_per_minute: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="requests of one caller in a minute at most; 0: no limit",
        ),
    ] = 0
    visitor_rate_limit_per_minute: Annotated[
        Annotated[int, Meta(ge=0, le=100_000)] | None,
        Meta(
            description="the same of one address without a token; not set: RATE_LIMIT_PER_MINUTE,"
            " and where that is 0, 600 in production",
            extra={"allowed": "a whole number from 0 to 100000"},
        ),
    ] = None
    cors_origins: Annotated[
        str,
        Meta(
            pattern=ORIGINS,
            description="origins whose pages may call the API from a browser",
            extra={"allowed": "origins such as `https://shop.example`, divided by commas, or *"},
        ),
    ] = ""
    trusted_proxies: Annotated[
        str,
        Meta(
            description="proxies whose X-Forwarded-For and X-Forwarded-Proto are believed;"
            " *: whoever connects",
            extra={"allowed": "addresses or networks, divided by commas, or *"},
        ),
    ] = ""
    metrics_port: Annotated[
        int,
        Meta(ge=0, le=65535, description="port the listener serves its metrics on; 0: it doesn't"),
    ] = 0
    metrics_token: Annotated[
        Annotated[str, Meta(min_length=16)] | None,
        Meta(
            description="bearer token that metrics of API and listener want; needed in production",
            extra={"allowed": "a text of 16 characters or more", "secret": True},
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least severe log line")
    ] = "info"

    @property
    def visitors_rate_limit(self) -> int:
        """Requests of one address without a token in a minute at most; 0: no limit."""
        if self.visitor_rate_limit_per_minute is not None:
            return self.visitor_rate_limit_per_minute
        by_itself = VISITOR_RATE_LIMIT if self.environment == "production" else 0
        return self.rate_limit_per_minute or by_itself

    def __repr__(self) -> str:
        """The settings that may be shown."""
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in msgspec.structs.fields(self)
            if not is_secret(field.type)
        ]
        return f"Settings({', '.join(shown)})"

    log_format: Annotated[Literal["text", "json"], Meta(description="format of log lines")] = "text"

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Read the settings from DARKPEARL_ variables.

        Raises:
            ConfigError: naming the variable, what was given and what is allowed; in production
                also what is good enough for development alone.
        """
        fields = {PREFIX + field.name.upper(): field for field in msgspec.structs.fields(cls)}
        given = {
            name: value
            for name, value in env.items()
            if name.startswith(PREFIX) and not name.startswith(FOREIGN) and value
        }
        for name in sorted(given.keys() - fields.keys()):
            raise ConfigError(f"{name} is no setting; known are {', '.join(fields)}")
        settings = cls(
            **{
                fields[name].name: _convert(name, value, fields[name].type)
                for name, value in given.items()
            }
        )
        if settings.environment == "production":
            _refuse_in_production(settings)
        return settings


class Variable(msgspec.Struct, frozen=True):
    """One setting as documentation shows it."""

    name: str
    default: str
    allowed: str
    description: str


def variables() -> list[Variable]:
    """Every setting, in the order of the struct."""
    return [
        Variable(
            name=PREFIX + field.name.upper(),
            default="" if field.default is None else str(field.default),
            allowed=_allowed(field.name, field.type),
            description=_meta(field.type).description or "",
        )
        for field in msgspec.structs.fields(Settings)
    ]


def traces_exporter(env: Mapping[str, str] = os.environ) -> TracesExporter | None:
    """Where OpenTelemetry's own variables want traces to go; None: nowhere.

    Raises:
        ConfigError: they want what can't be had here.
    """
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None

    def otlp(name: str) -> str:
        return env.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or env.get(
            f"OTEL_EXPORTER_OTLP_{name}", ""
        )

    wanted = env.get("OTEL_TRACES_EXPORTER") or ("otlp" if otlp("ENDPOINT") else "none")
    if wanted not in {"none", *get_args(TracesExporter)}:
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER: {wanted!r} is not allowed; give one of otlp, console, none"
        )
    if wanted == "otlp" and otlp("PROTOCOL") not in {"", "http/protobuf"}:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL: {otlp('PROTOCOL')!r} is not allowed; give http/protobuf"
        )
    return None if wanted == "none" else cast(TracesExporter, wanted)


def _refuse_in_production(settings: Settings) -> None:
    """Raise ConfigError for a setting with which others could make tokens, answers or events."""
    secrets = [each.strip() for each in (settings.webhook_secret or "").split(",")]
    for name, is_weak, needed in (
        ("JWT_JWKS", (settings.jwt_jwks or "").startswith("http://"), "an https:// URL or a path"),
        (
            "JWT_AUDIENCE",
            settings.jwt_jwks and not settings.jwt_audience,
            "set beside JWT_JWKS: its issuer may sign for others too",
        ),
        ("GATEWAY_URL", (settings.gateway_url or "").startswith("http://"), "an https:// URL"),
        (
            "WEBHOOK_SECRET",
            any(0 < len(each) < SHORTEST_WEBHOOK_SECRET for each in secrets),
            f"{SHORTEST_WEBHOOK_SECRET} characters or more, each where there are several",
        ),
    ):
        if is_weak:
            raise ConfigError(f"{PREFIX}{name}: in production it has to be {needed}")


def _convert(name: str, value: str, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=lambda to, text: to(text))
    except msgspec.ValidationError:
        shown = "what was given" if is_secret(kind) else repr(value)
        raise ConfigError(
            f"{name}: {shown} is not allowed; give {_allowed(name.lower(), kind)}"
        ) from None


def is_secret(kind: Any) -> bool:
    """Values of this annotated type are kept out of every message."""
    return bool((_meta(kind).extra or {}).get("secret"))


def _meta(kind: Any) -> Meta:
    return next(meta for meta in kind.__metadata__ if isinstance(meta, Meta))


def _allowed(name: str, kind: Any) -> str:
    """Words for the values that a setting of this name and annotated type may have."""
    meta, inner = _meta(kind), str(kind.__origin__)
    if meta.extra and "allowed" in meta.extra:
        return str(meta.extra["allowed"])
    if "Literal" in inner:
        return "one of " + ", ".join(kind.__origin__.__args__)
    if "int" not in inner and "float" not in inner:
        return "a text" if kind.__origin__ is str else "a path"
    words = "a whole number" if "int" in inner else "a number"
    unit = name.rpartition("_")[2]
    words += f" of {unit}" if unit in UNITS else ""
    low = f" from {meta.ge:g}" if meta.ge is not None else ""
    above = f" above {meta.gt:g}" if meta.gt is not None else ""
    high = f" to {meta.le:g}" if low and meta.le is not None else ""
    up_to = f" up to {meta.le:g}" if not low and meta.le is not None else ""
    return words + low + above + high + up_to
