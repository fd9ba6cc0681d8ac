"""Which server a command is about, and who logs in where."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from darkpearl import database as databases
from darkpearl import embedded, schema
from darkpearl.api import tokens
from darkpearl.cli.console import out
from darkpearl.config import ConfigError, Settings


@contextlib.contextmanager
def database(settings: Settings, *, exclusive: bool = False) -> Iterator[str]:
    """Address of the database; the embedded server runs at least as long as the block."""
    if settings.database_url:
        yield settings.database_url
        return
    with contextlib.ExitStack() as stack:
        with out.status("starting PostgreSQL"):
            serving_it = embedded.serve(settings.home, exclusive=exclusive, say=out.print)
            server = stack.enter_context(serving_it)
        yield server.url


def running(settings: Settings, *, through_socket: bool = False) -> str:
    """Address of a database that somebody else keeps running."""
    if settings.database_url:
        return settings.database_url
    server = server_of(settings)
    return server.socket_url() if through_socket else server.url


def server_of(settings: Settings) -> embedded.Server:
    """The embedded server that somebody else keeps running."""
    if server := embedded.running(settings.home):
        return server
    raise embedded.EmbeddedError(
        f"no server runs in {settings.home}: start one with darkpearl up or darkpearl db start"
    )


def logins(settings: Settings) -> tuple[str, str]:
    """Where the API and the listener log in; on the embedded server as the roles they are."""
    given = (settings.api_database_url, settings.listener_database_url)
    if settings.database_url:
        api, listener = (each or settings.database_url for each in given)
    else:
        roles = (databases.API_ROLE, databases.LISTENER_ROLE)
        api, listener = (
            each or server_of(settings).socket_url(role)
            for each, role in zip(given, roles, strict=True)
        )
    return api, listener


async def check_logins(api: str, listener: str) -> None:
    """Tell at once of a login that may not be what it has to be."""
    try:
        async with schema.connect(api) as connection:
            await connection.execute(f"set session authorization {databases.API_ROLE}")
    except schema.SchemaError as error:
        raise schema.SchemaError(
            f"the API can't log in as {databases.API_ROLE}: {error};"
            " DARKPEARL_API_DATABASE_URL gives it a login of its own"
        ) from error
    async with schema.connect(databases.as_role(listener, databases.LISTENER_ROLE)):
        pass


def with_keys(settings: Settings) -> Settings:
    """The settings with something to verify tokens with: development makes itself a secret.

    Raises:
        ConfigError: it is for production to be told, with keys that can be believed.
    """
    if settings.environment == "production" and settings.jwt_jwks:
        tokens.check_key_file(settings.jwt_jwks)
    if settings.jwt_secret or settings.jwt_jwks:
        return settings
    if settings.environment == "production":
        raise ConfigError(
            "in production tokens need DARKPEARL_JWT_SECRET or DARKPEARL_JWT_JWKS to be verified"
        )
    secret = embedded.kept_secret(settings.home, "jwt_secret")
    return msgspec.structs.replace(settings, jwt_secret=secret)


def with_known_keys(settings: Settings) -> Settings:
    """The same for who makes tokens: with a secret that an API verifies them with already.

    Raises:
        ConfigError: there is none here, and one made now would be nobody's.
    """
    is_made_here = settings.environment == "development" and not settings.jwt_jwks
    if is_made_here and not settings.jwt_secret and not (settings.home / "jwt_secret").exists():
        raise ConfigError(
            f"there is no secret in {settings.home} to sign a token with: an API makes one when it"
            " first starts; DARKPEARL_HOME says where, DARKPEARL_JWT_SECRET gives another"
        )
    return with_keys(settings)


def wants_demo(settings: Settings, applied: list[str]) -> bool:
    """Whether a start may load demo data and order some of it.

    Only where nobody's goods and nobody's money can be meant: in development, with the mock
    gateway, in a database that this very start has made.

    Args:
        settings: of the start.
        applied: the migrations that it has applied.
    """
    return (
        settings.environment == "development"
        and settings.gateway == "mock"
        and bool(applied)
        and applied == [each.stem for each in schema.files("migrations")]
    )


def find_pg_dump() -> Path:
    """The wheel's pg_dump, or the one on PATH."""
    try:
        return embedded.binaries() / "pg_dump"
    except embedded.EmbeddedError:
        if found := shutil.which("pg_dump"):
            return Path(found)
        raise
