"""Tokens: whom the API believes, and what it says to everybody else."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from litestar import Litestar

from darkpearl.api import tokens
from darkpearl.api.tokens import ANONYMOUS, Identity, Verifier
from darkpearl.config import ConfigError, Settings
from darkpearl.errors import UnauthorizedError, UnavailableError

Client = Callable[..., httpx.AsyncClient]
Problem = Callable[..., dict[str, Any]]

SECRET = "a secret of the tests, and of nothing else"
URL = "https://issuer.example/keys"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHORT_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())


def claims(**more: Any) -> dict[str, Any]:
    """Claims of a member of staff whose token is fine; None leaves one out."""
    whole = {"role": "service_role", "exp": int(time.time()) + 60, **more}
    return {name: value for name, value in whole.items() if value is not None}


def signed(key: Any = SECRET, algorithm: str = "HS256", *, kid: str = "", **more: Any) -> str:
    """A token with these claims."""
    headers = {"kid": kid} if kid else None
    return jwt.encode(claims(**more), key, algorithm=algorithm, headers=headers)


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    """The public half of a key as a JWK."""
    public = key.public_key()
    algorithm = jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else None
    algorithm = algorithm or jwt.algorithms.RSAAlgorithm
    return {**algorithm.to_jwk(public, as_dict=True), "kid": kid, "use": "sig", **more}


def forged(header: dict[str, Any], key: bytes) -> str:
    """A token put together by hand, with an HMAC under whatever key."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=")
        for each in (header, claims())
    ]
    signature = hmac.digest(key, b".".join(parts), hashlib.sha256) if key else b""
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


async def ask(settings: Settings, token: str, transport: Any = None) -> Identity:
    """The identity that a fresh verifier takes the token for."""
    async with Verifier(settings, transport) as verifier:
        return await verifier.identify([f"Bearer {token}"])


class Issuer(httpx.AsyncBaseTransport):
    """The keys at their URL, and how often they were asked for."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = list(keys)
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.answer: Callable[[], httpx.Response] = lambda: httpx.Response(
            200, json={"keys": self.keys}
        )
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        self.was_asked.set()
        await self.may_answer.wait()
        return self.answer()


PUBLISHED = Settings(jwt_jwks=URL)


@pytest.fixture
def issuer() -> Issuer:
    """Publishes an RSA key `r1` and an EC key `e1`."""
    return Issuer(jwk(RSA, "r1"), jwk(EC, "e1"))


@pytest.fixture
async def verifier(issuer: Issuer) -> AsyncIterator[Verifier]:
    """Believes the issuer."""
    async with Verifier(PUBLISHED, issuer) as verifier:
        yield verifier


def bearer(token: str) -> list[str]:
    """The headers with a token."""
    return [f"Bearer {token}"]


# Tokens that are believed.


async def test_no_token_is_a_visitor() -> None:
    """A caller that says nothing is anon."""
    async with Verifier(Settings(jwt_secret=SECRET)) as verifier:
        assert await verifier.identify([]) is ANONYMOUS


@pytest.mark.parametrize("role", get_args(tokens.Role))
async def test_a_token_of_the_secret_is_believed(role: str) -> None:
    """Role and all claims are taken over, with the moment at which they end."""
    given = claims(role=role, sub=str(uuid4()), email="me@example.com")
    token = jwt.encode(given, SECRET, algorithm="HS256")
    who = await ask(Settings(jwt_secret=SECRET), token)
    assert (who.role, json.loads(who.claims), who.expires_at) == (role, given, given["exp"])


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "r1"), (EC, "ES256", "e1")])
async def test_a_token_of_a_published_key_is_believed(
    verifier: Verifier, key: Any, algorithm: str, kid: str
) -> None:
    """RS256 and ES256, the key found by its id."""
    who = await verifier.identify(bearer(signed(key, algorithm, kid=kid)))
    assert who.role == "service_role"


async def test_the_only_key_needs_no_id(issuer: Issuer) -> None:
    """Without a kid the one key of the algorithm is it; of two, none."""
    token = signed(RSA, "RS256")
    assert (await ask(PUBLISHED, token, issuer)).role == "service_role"
    issuer.keys.append(jwk(OTHER_RSA, "r2"))
    with pytest.raises(UnauthorizedError):
        await ask(PUBLISHED, token, issuer)


async def test_a_token_that_comes_again_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signature is worked out the first time, until so many others have come."""
    verified: list[str] = []
    decode = jwt.decode

    def counted(token: str, *args: Any, **options: Any) -> Any:
        verified.append(token)
        return decode(token, *args, **options)

    monkeypatch.setattr(jwt, "decode", counted)
    monkeypatch.setattr(tokens, "MOST_VERIFIED", 2)
    one, two, three = (signed(sub=str(uuid4())) for _ in range(3))
    async with Verifier(Settings(jwt_secret=SECRET)) as verifier:
        first = await verifier.identify(bearer(one))
        assert await verifier.identify(bearer(one)) == first
        assert verified == [one]
        for token in (two, one, three, one, two):
            await verifier.identify(bearer(token))
    assert verified == [one, two, three, two]


async def test_a_token_that_comes_again_may_have_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it was believed before is no excuse."""
    token = signed()
    async with Verifier(Settings(jwt_secret=SECRET)) as verifier:
        identity = await verifier.identify(bearer(token))
        monkeypatch.setattr(time, "time", lambda: identity.expires_at - 1)
        assert await verifier.identify(bearer(token)) is identity
        monkeypatch.setattr(time, "time", lambda: identity.expires_at + 3600)
        assert not await verifier._still_holds(verifier._verified[token])


async def test_clocks_may_differ_by_the_leeway() -> None:
    """A token that has just ended or is about to begin counts, within the leeway alone."""
    lenient = Settings(jwt_secret=SECRET, jwt_leeway_seconds=30)
    now = int(time.time())
    assert await ask(lenient, signed(exp=now - 5))
    assert await ask(lenient, signed(nbf=now + 5))
    for late in ({"exp": now - 60}, {"nbf": now + 60}):
        with pytest.raises(UnauthorizedError):
            await ask(lenient, signed(**late))


async def test_when_a_token_was_made_is_no_limit() -> None:
    """A token that says it was made in an hour is valid: ours may be the clock that is wrong."""
    now = int(time.time())
    assert (await ask(Settings(jwt_secret=SECRET), signed(iat=now + 3600))).role == "service_role"


async def test_issuer_and_audience_are_checked_where_they_are_set() -> None:
    """Set, they have to be named; an audience may be one of several."""
    strict = Settings(jwt_secret=SECRET, jwt_issuer="us", jwt_audience="shop")
    assert await ask(strict, signed(iss="us", aud=["web", "shop"]))
    assert await ask(Settings(jwt_secret=SECRET), signed(iss="them", aud="web"))
    wrong = [
        ({"iss": "them", "aud": "shop"}, "another issuer"),
        ({"iss": "us", "aud": "web"}, "another audience"),
        ({"aud": "shop"}, "missing"),
        ({"iss": "us"}, "missing"),
    ]
    for more, said in wrong:
        with pytest.raises(UnauthorizedError, match=said):
            await ask(strict, signed(**more))


# Tokens that are not.

PUBLIC_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
BAD = {
    "expired": signed(exp=int(time.time()) - 3600),
    "not yet": signed(nbf=int(time.time()) + 3600),
    "another secret": signed("another secret that is also long enough"),
    "unsigned": forged({"alg": "none", "typ": "JWT"}, b""),
    "unsigned, spelt differently": forged({"alg": "nOnE", "typ": "JWT"}, b""),
    "said to be RS256, signed with the secret": forged({"alg": "RS256"}, SECRET.encode()),
    "HS256 with the public key as its secret": forged({"alg": "HS256", "kid": "r1"}, PUBLIC_PEM),
    "HS512": signed("x" * 64, "HS512"),
    "no expiry": signed(exp=None),
    "no role": signed(role=None),
    "a role of the database": signed(role="darkpearl_owner"),
    "the API's own role": signed(role="darkpearl_api"),
    "a superuser": signed(role="darkpearl"),
    "a role that is a list": signed(role=["service_role"]),
    "a customer without an id": signed(role="authenticated"),
    "a customer whose id can't be seen": signed(role="authenticated", sub="alice\u200b"),
    "a customer whose id has a NUL": signed(role="authenticated", sub="al\x00ce"),
    "a customer whose id ends in a space": signed(role="authenticated", sub="alice "),
    "a customer whose id is empty": signed(role="authenticated", sub=""),
    "a customer whose id is too long": signed(role="authenticated", sub="x" * 256),
    "a customer whose id is a number": signed(role="authenticated", sub=4711),
    "an expiry that is a word": signed(exp="tomorrow"),
    "no JWT": "hello",
    "three dots": "...",
    "nested without end": base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.e30",
    "too long": signed(padding="x" * 9000),
    "not ASCII": "\xe4.\xf6.\xfc",
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_is_401(client: Client, problem: Problem, name: str) -> None:
    """It is refused as such even where none is needed, and never repeated."""
    api = client()
    headers = {"Authorization": f"Bearer {BAD[name]}".encode()}
    told = await api.get("/products", headers=headers)
    document = problem(told, 401, "DP031")
    assert document["detail"]
    assert told.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert BAD[name] not in told.text


@pytest.mark.parametrize(
    "header", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", signed(), f"Token {signed()}", ""]
)
async def test_a_token_in_another_scheme_is_401(
    client: Client, problem: Problem, header: str
) -> None:
    """Only Bearer counts; something else is not the same as nothing."""
    told = await client().get("/products", headers={"Authorization": header})
    problem(told, 401, "DP031")


async def test_two_tokens_are_401(client: Client, problem: Problem) -> None:
    """Of two headers neither is chosen."""
    headers = [("Authorization", f"Bearer {signed()}")] * 2
    problem(await client().get("/products", headers=headers), 401, "DP031")


async def test_the_scheme_is_in_any_case(client: Client) -> None:
    """`bearer` is Bearer (RFC 9110)."""
    told = await client().get("/orders", headers={"Authorization": f"bearer {signed()}"})
    assert told.status_code == 200


@pytest.mark.parametrize(
    "confused",
    [
        forged({"alg": "HS256", "kid": "r1"}, PUBLIC_PEM),
        forged({"alg": "RS256", "kid": "r1"}, PUBLIC_PEM),
        forged({"alg": "none", "kid": "r1"}, b""),
        signed(RSA, "RS512", kid="r1"),
        signed(OTHER_RSA, "RS256", kid="r1"),
        signed(EC, "ES256", kid="r1"),
        signed(RSA, "RS256", kid="e1"),
        signed("x" * 32, "HS256", kid="s1"),
        signed(RSA, "RS256", kid="enc"),
    ],
    ids=range(9),
)
async def test_a_key_serves_its_own_algorithm_alone(
    issuer: Issuer, verifier: Verifier, confused: str
) -> None:
    """Neither a public key as a secret, nor a published secret, nor a key for another use."""
    secret = base64.urlsafe_b64encode(b"x" * 32).rstrip(b"=").decode()
    issuer.keys.append({"kty": "oct", "kid": "s1", "k": secret, "alg": "HS256"})
    issuer.keys.append(jwk(RSA, "enc", use="enc"))
    with pytest.raises(UnauthorizedError):
        await verifier.identify(bearer(confused))


async def test_without_a_secret_no_secret_is_right() -> None:
    """Not even an empty one."""
    for key in (b"", b"None", b"null"):
        with pytest.raises(UnauthorizedError):
            await ask(Settings(), forged({"alg": "HS256"}, key))


# Requests that need one.


async def test_what_needs_a_token_says_so(client: Client, problem: Problem) -> None:
    """Without one: 401, and Bearer is asked for. With one that isn't enough: 403."""
    order = {"warehouse_id": str(uuid4()), "items": [{"product_id": str(uuid4()), "quantity": 1}]}
    product = {"sku": "X", "name": "X", "unit_price": 1}
    for send in (
        lambda api: api.get("/orders"),
        lambda api: api.get(f"/orders/{uuid4()}"),
        lambda api: api.get(f"/orders/{uuid4()}/events"),
        lambda api: api.post("/orders", json=order),
        lambda api: api.delete(f"/orders/{uuid4()}"),
        lambda api: api.get("/sagas"),
        lambda api: api.get("/stock-movements"),
        lambda api: api.post("/products", json=product),
        lambda api: api.patch(f"/products/{uuid4()}", json={"name": "X"}),
        lambda api: api.delete(f"/warehouses/{uuid4()}"),
    ):
        told = await send(client())
        problem(told, 401, "DP030")
        assert told.headers["www-authenticate"] == "Bearer"
        problem(await send(client("anon")), 403, "42501")


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/problems", "/problems/DP030", "/schema"]
)
async def test_what_needs_no_token_looks_at_none(client: Client, path: str) -> None:
    """Probes and descriptions answer whoever asks, whatever token is sent."""
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        assert (await client().get(path, headers=headers)).status_code == 200


async def test_the_description_tells_of_tokens(client: Client) -> None:
    """OpenAPI names the scheme, and 401 for whatever asks who calls."""
    told = (await client().get("/schema/openapi.json")).json()
    assert told["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, operations in told["paths"].items():
        for operation in operations.values():
            asks = path != "/" and not path.startswith(("/health", "/problems"))
            assert ("401" in operation["responses"]) == asks, path


# Keys that are published.


async def test_keys_are_fetched_once(issuer: Issuer, verifier: Verifier) -> None:
    """Many tokens, many at once, one fetch."""
    issuer.may_answer.clear()
    tokens_ = [signed(RSA, "RS256", kid="r1") for _ in range(20)]
    asking = [asyncio.create_task(verifier.identify(bearer(each))) for each in tokens_]
    await issuer.was_asked.wait()
    issuer.may_answer.set()
    assert {who.role for who in await asyncio.gather(*asking)} == {"service_role"}
    await verifier.identify(bearer(signed(EC, "ES256", kid="e1")))
    assert issuer.asked == 1


async def test_a_new_key_is_fetched_when_it_is_first_used(
    issuer: Issuer, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a rotation the new key counts at once, and the old one no more."""
    await verifier.identify(bearer(signed(RSA, "RS256", kid="r1")))
    monkeypatch.setattr(tokens, "REFETCH_SECONDS", 0)
    issuer.keys = [jwk(OTHER_RSA, "r2")]
    assert await verifier.identify(bearer(signed(OTHER_RSA, "RS256", kid="r2")))
    assert issuer.asked == 2
    with pytest.raises(UnauthorizedError):
        await verifier.identify(bearer(signed(RSA, "RS256", kid="r1")))


async def test_unknown_keys_dont_make_it_fetch_again_and_again(
    issuer: Issuer, verifier: Verifier
) -> None:
    """A sender of tokens with made-up key ids causes no more fetches than the limit."""
    for number in range(50):
        with pytest.raises(UnauthorizedError):
            await verifier.identify(bearer(signed(RSA, "RS256", kid=f"made up {number}")))
    assert issuer.asked == 1


async def test_withdrawn_keys_are_forgotten(
    issuer: Issuer, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are looked up again when they are old; no request waits for that."""
    token = bearer(signed(RSA, "RS256", kid="r1"))
    await verifier.identify(token)
    issuer.keys = [jwk(EC, "e1")]
    issuer.may_answer.clear()
    issuer.was_asked.clear()
    monkeypatch.setattr(tokens, "KEEP_SECONDS", 0)
    assert await verifier.identify(token), "served with the key that it has"
    await issuer.was_asked.wait()
    assert await verifier.identify(token)
    monkeypatch.undo()
    issuer.may_answer.set()
    assert verifier._keys
    assert verifier._keys._loading
    await verifier._keys._loading
    with pytest.raises(UnauthorizedError):
        await verifier.identify(token)


async def padded(key: dict[str, Any]) -> AsyncIterator[bytes]:
    """A set of a key, as it comes over a wire, and longer than one may be."""
    yield json.dumps({"keys": [key]}).ljust(tokens.LARGEST_KEY_SET + 1).encode()


NONE_PUBLISHED = {
    "an empty set": lambda: httpx.Response(200, json={"keys": []}),
    "no page": lambda: httpx.Response(404),
    "no page any more": lambda: httpx.Response(410),
    "no JSON": lambda: httpx.Response(200, text="no JSON"),
    "nested without end": lambda: httpx.Response(200, text="[" * 100_000),
    "a list": lambda: httpx.Response(200, json=[]),
    "half a key": lambda: httpx.Response(200, json={"keys": [{"kty": "RSA", "kid": "r1"}]}),
    "too long": lambda: httpx.Response(200, content=padded(jwk(RSA, "r1"))),
    "compressed": lambda: httpx.Response(
        200,
        headers={"content-encoding": "gzip"},
        content=gzip.compress(json.dumps({"keys": [jwk(RSA, "r1")]}).encode()),
    ),
    "a key that is too short": lambda: httpx.Response(200, json={"keys": [jwk(SHORT_RSA, "r1")]}),
}
OUTAGES = {
    "an error": lambda: httpx.Response(500),
    "busy": lambda: httpx.Response(429),
    "elsewhere": lambda: httpx.Response(302, headers={"location": "https://elsewhere.example"}),
    "no network": lambda: (_ for _ in ()).throw(httpx.ConnectError("no route")),
}


NO_KEYS = {"an empty set", "a key that is too short"}


async def looked(verifier: Verifier, issuer: Issuer, token: list[str]) -> None:
    """Have it look at the keys, which are old, while a request comes."""
    issuer.was_asked.clear()
    with contextlib.suppress(UnauthorizedError, UnavailableError):
        await verifier.identify(token)
    await issuer.was_asked.wait()
    assert verifier._keys
    assert verifier._keys._loading
    await verifier._keys._loading


@pytest.mark.parametrize("answer", NONE_PUBLISHED)
async def test_keys_that_are_published_no_more_are_believed_no_more(
    issuer: Issuer, verifier: Verifier, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No keys, no page, nothing that can be read: 401 from the next look on."""
    token = bearer(signed(RSA, "RS256", kid="r1"))
    assert await verifier.identify(token)
    published, issuer.answer = issuer.answer, NONE_PUBLISHED[answer]
    monkeypatch.setattr(tokens, "KEEP_SECONDS", 0)
    await looked(verifier, issuer, token)
    with pytest.raises(UnauthorizedError):
        await verifier.identify(token)
    monkeypatch.setattr(tokens, "REFETCH_SECONDS", 0)
    issuer.answer = published
    assert await verifier.identify(token)


@pytest.mark.parametrize("answer", OUTAGES)
async def test_an_issuer_in_trouble_locks_nobody_out_at_once(
    issuer: Issuer, verifier: Verifier, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys so far go on for BELIEVED_SECONDS; then it is 503 until the issuer is back."""
    token = bearer(signed(RSA, "RS256", kid="r1"))
    assert await verifier.identify(token)
    published, issuer.answer = issuer.answer, OUTAGES[answer]
    monkeypatch.setattr(tokens, "KEEP_SECONDS", 0)
    await looked(verifier, issuer, token)
    assert await verifier.identify(token)
    assert verifier._keys
    verifier._keys._had_at -= tokens.BELIEVED_SECONDS
    await looked(verifier, issuer, token)
    with pytest.raises(UnavailableError):
        await verifier.identify(token)
    monkeypatch.setattr(tokens, "REFETCH_SECONDS", 0)
    issuer.answer = published
    assert await verifier.identify(token)


@pytest.mark.parametrize("answer", sorted((NONE_PUBLISHED | OUTAGES).keys() - NO_KEYS))
async def test_an_issuer_that_had_no_keys_yet_is_no_verdict(
    issuer: Issuer, verifier: Verifier, answer: str
) -> None:
    """503 and not 401, unless it says that there are none that could be believed."""
    issuer.answer = (NONE_PUBLISHED | OUTAGES)[answer]
    with pytest.raises(UnavailableError):
        await verifier.identify(bearer(signed(RSA, "RS256", kid="r1")))


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits")
@pytest.mark.parametrize("answer", sorted(NO_KEYS))
async def test_an_issuer_without_keys_is_believed(
    issuer: Issuer, verifier: Verifier, answer: str
) -> None:
    """A set without keys, or with none of 2048 bits, is an answer: 401."""
    issuer.answer = NONE_PUBLISHED[answer]
    with pytest.raises(UnauthorizedError):
        await verifier.identify(bearer(signed(SHORT_RSA, "RS256", kid="r1")))


async def test_a_slow_issuer_is_given_up(
    issuer: Issuer, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch ends after its time, and the requests that wait for it with it."""
    monkeypatch.setattr(tokens, "FETCH_SECONDS", 0.05)
    issuer.may_answer.clear()
    async with asyncio.timeout(5):
        with pytest.raises(UnavailableError):
            await verifier.identify(bearer(signed(RSA, "RS256", kid="r1")))


async def test_the_address_of_the_keys_is_not_logged(
    issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    """It may hold a password."""
    issuer.answer = lambda: httpx.Response(404)
    settings = Settings(jwt_jwks="https://me:hunter2@issuer.example/keys?apikey=hunter2")
    caplog.set_level(logging.WARNING)
    with pytest.raises(UnavailableError):
        await ask(settings, signed(RSA, "RS256", kid="r1"), issuer)
    assert "DARKPEARL_JWT_JWKS can't be had" in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_file_of_keys_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Rotation without a restart; keys of a file that is emptied, broken or removed are out."""
    file = tmp_path / "keys.json"

    def publish(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        fresh.replace(file)

    async with Verifier(Settings(jwt_jwks=str(file))) as verifier:
        old, new = signed(RSA, "RS256", kid="r1"), signed(OTHER_RSA, "RS256", kid="r2")
        with pytest.raises(UnavailableError):
            await verifier.identify(bearer(old))
        publish(json.dumps({"keys": [jwk(RSA, "r1")]}))
        assert await verifier.identify(bearer(old))
        publish(json.dumps({"keys": [jwk(OTHER_RSA, "r2")]}))
        with pytest.raises(UnauthorizedError):
            await verifier.identify(bearer(old))
        assert await verifier.identify(bearer(new))
        for withdrawn in ("{", '{"keys": []}', None):
            publish(json.dumps({"keys": [jwk(OTHER_RSA, "r2")]}))
            assert await verifier.identify(bearer(new))
            file.unlink() if withdrawn is None else publish(withdrawn)
            with pytest.raises(UnauthorizedError):
                await verifier.identify(bearer(new))


async def test_secret_and_keys_serve_side_by_side(issuer: Issuer) -> None:
    """While an issuer moves from one to the other, tokens of both are believed."""
    both = Settings(jwt_secret=SECRET, jwt_jwks=URL)
    for token in (signed(), signed(EC, "ES256", kid="e1")):
        assert await ask(both, token, issuer)


# Tokens for development.


@pytest.mark.parametrize("role", get_args(tokens.Role))
async def test_a_token_for_development_is_believed(role: tokens.Role) -> None:
    """It says what the settings ask of tokens."""
    settings = Settings(jwt_secret=SECRET, jwt_issuer="us", jwt_audience="shop")
    subject = str(uuid4())
    who = await ask(settings, tokens.mint(settings, role, subject, 60))
    told = json.loads(who.claims)
    assert (who.role, told["sub"], told["iss"], told["aud"]) == (role, subject, "us", "shop")
    assert 0 < who.expires_at - time.time() <= 60


def test_none_are_made_in_production_or_in_anothers_name() -> None:
    """Each refusal says why."""
    production = Settings(jwt_secret=SECRET, environment="production")
    with pytest.raises(ConfigError, match="in development alone"):
        tokens.mint(production, "service_role", None, 60)
    with pytest.raises(ConfigError, match="DARKPEARL_JWT_JWKS"):
        tokens.mint(PUBLISHED, "service_role", None, 60)
    with pytest.raises(ConfigError, match="visible"):
        tokens.mint(Settings(jwt_secret=SECRET), "authenticated", " ", 60)


async def test_a_stream_ends_with_its_token(
    app: Litestar, client: Client, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Following an order goes on no longer than the token does."""
    order = await shop.order((shop.products[0], 1))
    token = signed(exp=time.time() + 0.5)
    monkeypatch.setattr("darkpearl.api.events.POLL_SECONDS", 0.01)
    async with asyncio.timeout(10):
        told = await client().get(
            f"/orders/{order}/events", headers={"Authorization": f"Bearer {token}"}
        )
    assert told.text.count("event: ") == 1
    assert len(app.state.streams) == 0
