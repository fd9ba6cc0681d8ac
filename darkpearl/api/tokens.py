"""Tokens: the identity that a request claims, verified.

PyJWT verifies signature, expiry and not-before, and issuer and audience where the settings name
them. HS256 is checked with the secret alone, RS256 and ES256 with the published keys alone, so no
token can choose a key of another kind than it was signed with. The claims are Supabase's: `role`
is the role of the database to act as, `sub` who it is.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import OrderedDict
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Self, get_args

import httpx
import jwt
import msgspec

from darkpearl.config import ConfigError, Settings
from darkpearl.errors import PROBLEMS, UnauthorizedError, UnavailableError
from darkpearl.outside import NOT_COMPRESSED, UnreadableError, reading

Role = Literal["anon", "authenticated", "service_role", "darkpearl_reader"]

LONGEST_TOKEN = 8192
LONGEST_CUSTOMER = 255
LARGEST_KEY_SET = 256 * 1024
FETCH_SECONDS = 5.0
KEEP_SECONDS = 300.0
"""How old fetched keys grow before they are fetched again: a withdrawn key is out by then."""
BELIEVED_SECONDS = 3600.0
"""How long fetched keys are believed while nobody can be asked whether they still hold."""
REFETCH_SECONDS = 10.0
"""Rest between two fetches for the sake of a key that isn't known."""
MOST_VERIFIED = 1000
"""Tokens whose signature isn't worked out again; beyond it the one unseen for longest goes."""
SHORTEST_RSA_BITS = 2048
PUBLIC_ALGORITHMS = ("RS256", "ES256")

_REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "It has expired.",
    jwt.ImmatureSignatureError: "It isn't valid yet.",
    jwt.InvalidIssuerError: "It is from another issuer.",
    jwt.InvalidAudienceError: "It is for another audience.",
    jwt.MissingRequiredClaimError: "A claim is missing: it needs exp and role, and those that the"
    " settings ask for.",
    jwt.InvalidSignatureError: "Its signature is wrong.",
}

logger = logging.getLogger(__name__)


class Identity(msgspec.Struct, frozen=True):
    """The maker of a request: the role to act as, and the claims as JSON."""

    role: Role
    claims: str
    expires_at: float = math.inf
    """Seconds since 1970."""
    subject: str = ""

    @property
    def is_visitor(self) -> bool:
        """Anybody may be that: without a token, or with one that is given to all."""
        return self.role == "anon"

    @property
    def is_staff(self) -> bool:
        """May read every column."""
        return self.role in {"service_role", "darkpearl_reader"}


ANONYMOUS = Identity("anon", '{"role": "anon"}')
"""The identity without a token."""


class _Verified(msgspec.Struct, frozen=True):
    """A token that was found valid, and the key it was checked with."""

    algorithm: str
    key_id: str | None
    key: str | jwt.PyJWK
    identity: Identity


class Verifier:
    """Tells identities from Authorization headers; used as a context manager.

    A signature is checked once for each key that it is held against: a token that comes again
    is as good as before while its key is still the published one and it hasn't expired.
    """

    def __init__(
        self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._settings = settings
        self._keys = PublishedKeys(settings.jwt_jwks, transport) if settings.jwt_jwks else None
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keys:
            await self._keys.close()

    async def identify(self, headers: list[str]) -> Identity:
        """The sender of these Authorization headers; ANONYMOUS without one.

        Raises:
            UnauthorizedError: it is no Bearer token, or not a valid one.
            UnavailableError: the keys to check it with could not be fetched.
        """
        if not headers:
            return ANONYMOUS
        scheme, _, token = headers[0].partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer" or not token.strip():
            raise invalid(
                "The Authorization header isn't Bearer and a token.",
                hint="Send one header, Authorization: Bearer, a space and the token.",
            )
        if len(token) > LONGEST_TOKEN:
            raise invalid(f"It is longer than {LONGEST_TOKEN} characters.")
        token = token.strip()
        try:
            known = self._verified.get(token)
            if known and await self._still_holds(known):
                self._verified.move_to_end(token)
                return known.identity
            known = self._verified[token] = await self._verify(token)
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
            self._verified.pop(token, None)
            raise invalid(_REASONS.get(type(error), "It can't be read.")) from None
        if len(self._verified) > MOST_VERIFIED:
            self._verified.popitem(last=False)
        return known.identity

    async def _still_holds(self, known: _Verified) -> bool:
        expires_at = known.identity.expires_at + self._settings.jwt_leeway_seconds
        return (
            expires_at > time.time() and await self._key(known.algorithm, known.key_id) is known.key
        )

    async def _key(self, algorithm: str, key_id: str | None) -> str | jwt.PyJWK | None:
        if algorithm == "HS256":
            return self._settings.jwt_secret
        if algorithm in PUBLIC_ALGORITHMS and self._keys:
            return await self._keys.find(key_id, algorithm)
        return None

    async def _verify(self, token: str) -> _Verified:
        header = jwt.get_unverified_header(token)
        algorithm, key_id = str(header.get("alg")), header.get("kid")
        key = await self._key(algorithm, key_id)
        if key is None:
            raise invalid("It is signed with a key or in a way that isn't accepted here.")
        return _Verified(algorithm, key_id, key, _identity(self._claims(token, algorithm, key)))

    def _claims(self, token: str, algorithm: str, key: str | jwt.PyJWK) -> dict[str, Any]:
        settings = self._settings
        required = ["exp", "role"]
        required += ["iss"] if settings.jwt_issuer else []
        required += ["aud"] if settings.jwt_audience else []
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            leeway=settings.jwt_leeway_seconds,
            options={
                "require": required,
                "verify_aud": settings.jwt_audience is not None,
                "verify_iat": False,  # when it was made; nbf says from when on it is valid
            },
        )


class PublishedKeys:
    """The public keys of an issuer, at a URL or in a file, as they are now.

    A file is read again when it has changed. What a URL gave is fetched again when it is
    KEEP_SECONDS old, aside from the requests, and for a key that isn't known.

    No keys, no file, no page (404, 410) and what can't be read as keys are an answer: none are
    published. All else (no network, no time, an error of the issuer's) is none, and those so far
    are believed for BELIEVED_SECONDS.
    """

    def __init__(self, source: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._source = source
        self._keys: list[jwt.PyJWK] | None = None
        self._had_at = self._tried_at = -math.inf
        self._seen: object = self  # no state of a file is equal to this
        self._loading: asyncio.Task[None] | None = None
        self._client = (
            httpx.AsyncClient(
                headers=NOT_COMPRESSED,
                timeout=FETCH_SECONDS,
                transport=transport,
                event_hooks=reading(LARGEST_KEY_SET),
            )
            if source.startswith(("http://", "https://"))
            else None
        )

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of this id for an algorithm; without an id the only key there is.

        Raises:
            UnavailableError: no keys could be had so far, or not for too long.
        """
        key = self._known(key_id, algorithm)
        if self._is_due(known=key is not None):
            self._loading = asyncio.create_task(self._load())
        if self._loading and (key is None or not self._client):
            await asyncio.shield(self._loading)
            key = self._known(key_id, algorithm)
        if self._believed() is None:
            raise UnavailableError("The keys of who issues tokens can't be had.")
        return key

    async def close(self) -> None:
        """Fetch no more."""
        if self._loading:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading
        if self._client:
            await self._client.aclose()

    def _believed(self) -> list[jwt.PyJWK] | None:
        """The keys that were published last; None where that is too long ago to go by."""
        is_stale = self._client and time.monotonic() - self._had_at >= BELIEVED_SECONDS
        return None if is_stale else self._keys

    def _known(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        usable = [
            key
            for key in self._believed() or []
            if key.algorithm_name == algorithm and key.public_key_use in {None, "sig"}
        ]
        if key_id is None:
            return usable[0] if len(usable) == 1 else None
        return next((key for key in usable if key.key_id == key_id), None)

    def _is_due(self, *, known: bool) -> bool:
        if self._loading and not self._loading.done():
            return False
        if self._client:
            rest = KEEP_SECONDS if known else REFETCH_SECONDS
            return time.monotonic() - self._tried_at >= rest
        return self._state() != self._seen

    async def _load(self) -> None:
        """Take over the keys that are published now."""
        self._tried_at = time.monotonic()
        self._seen = self._state()
        try:
            text = await (self._fetch() if self._client else asyncio.to_thread(self._read))
            published = _keys_in(text)
            self._keys = [key for key in published if _is_long_enough(key)]
            if len(self._keys) < len(published):
                logger.warning("RSA keys of less than %s bits aren't believed", SHORTEST_RSA_BITS)
        except Exception as error:  # noqa: BLE001 - what others publish breaks in any way
            # Not the error's text: an address may hold a password.
            logger.warning("the keys of DARKPEARL_JWT_JWKS can't be had: %s", type(error).__name__)
            if self._keys is None or _is_outage(error):
                return
            self._keys = []
        self._had_at = time.monotonic()

    async def _fetch(self) -> bytes:
        assert self._client  # noqa: S101 - who calls this has looked
        async with asyncio.timeout(FETCH_SECONDS):
            response = await self._client.get(self._source)
        return response.raise_for_status().content

    def _read(self) -> bytes:
        with Path(self._source).open("rb") as file:
            text = file.read(LARGEST_KEY_SET + 1)
        if len(text) > LARGEST_KEY_SET:
            raise ValueError
        return text

    def _state(self) -> object:
        """A mark that changes when the file does; None while it isn't there."""
        if self._client:
            return None
        try:
            found = Path(self._source).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def check_key_file(source: str) -> None:
    """Look at a file of keys before anything is started. What is at a URL is seen when it is used.

    Raises:
        ConfigError: none of its keys would be believed.
    """
    try:
        text = Path(source).read_bytes()
    except OSError:  # it may come later
        return
    try:
        is_usable = any(map(_is_long_enough, _keys_in(text)))
    except Exception:  # noqa: BLE001 - as when it is read later
        is_usable = False
    if not is_usable:
        raise ConfigError(
            "DARKPEARL_JWT_JWKS: the file has no key that could be believed, such as RSA of"
            f" {SHORTEST_RSA_BITS} bits or more"
        )


def _keys_in(text: bytes) -> list[jwt.PyJWK]:
    """The keys of a JWK set; raises when it is none, or has keys and none that can be read."""
    document = json.loads(text)
    if isinstance(document, dict) and document.get("keys") == []:
        return []
    return jwt.PyJWKSet.from_dict(document).keys


def _is_long_enough(key: jwt.PyJWK) -> bool:
    return key.key_type != "RSA" or bool(key.key.key_size >= SHORTEST_RSA_BITS)


def _is_outage(error: Exception) -> bool:
    """Whether a look that failed says nothing of the keys: nobody answered, or not on purpose."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code not in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
    said = (UnreadableError, FileNotFoundError, NotADirectoryError)
    return isinstance(error, (httpx.TransportError, OSError)) and not isinstance(error, said)


def mint(settings: Settings, role: Role, subject: str | None, seconds: int) -> str:
    """A token for development, signed with the secret of the settings.

    Raises:
        ConfigError: this is no development, the secret isn't ours to know, or a customer's
            subject can't be one.
    """
    if settings.environment != "development":
        raise ConfigError(
            "tokens are made here in development alone; DARKPEARL_ENVIRONMENT is"
            f" {settings.environment}"
        )
    if settings.jwt_secret is None:
        raise ConfigError("tokens come from who publishes the keys at DARKPEARL_JWT_JWKS")
    now = int(time.time())
    claims: dict[str, Any] = {"role": role, "iat": now, "exp": now + seconds}
    named = {"sub": subject, "iss": settings.jwt_issuer, "aud": settings.jwt_audience}
    claims |= {name: value for name, value in named.items() if value is not None}
    try:
        _identity(claims)
    except UnauthorizedError as error:
        raise ConfigError(error.detail) from None
    return jwt.encode(claims, settings.jwt_secret, algorithm="HS256")


def invalid(reason: str, *, hint: str = "Get a new token from its issuer.") -> UnauthorizedError:
    """The error for a token that isn't valid; the reason never repeats it."""
    return UnauthorizedError(reason, title=PROBLEMS["DP031"].title, code="DP031", hint=hint)


def _identity(claims: dict[str, Any]) -> Identity:
    """The identity that verified claims speak of.

    Raises:
        UnauthorizedError: the role is none that callers may have, or a customer has no id.
    """
    role, subject = claims["role"], claims.get("sub")
    if role not in get_args(Role):
        raise invalid(f"Its role is none of {', '.join(get_args(Role))}.")
    if role == "authenticated" and not _is_customer(subject):
        raise invalid(
            f"Its sub is no text of 1 to {LONGEST_CUSTOMER} visible characters, by which customers"
            " are told apart."
        )
    return Identity(role, json.dumps(claims, allow_nan=False), float(claims["exp"]), subject or "")


def _is_customer(subject: object) -> bool:
    """Whether a subject can be told from others by looking at it, as the database wants it."""
    return (
        isinstance(subject, str)
        and len(subject) <= LONGEST_CUSTOMER
        and subject.isprintable()
        and subject.split(" ") == subject.split()  # single spaces, and none at its ends
    )
