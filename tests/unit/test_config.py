"""Settings come from the environment, checked, or not at all."""

import re
from pathlib import Path

import msgspec
import pytest

from darkpearl.config import PREFIX, ConfigError, Settings, variables

SETTINGS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    """Nothing has to be set to run."""
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert settings.port == 8000
    assert settings.home == Path(".darkpearl")
    assert settings.database_url is None


def test_every_setting_is_read_from_its_variable() -> None:
    """Texts become the types of their fields."""
    settings = Settings.from_environment(
        {
            "DARKPEARL_PORT": "9000",
            "DARKPEARL_HOME": "/a b",
            "DARKPEARL_POLL_SECONDS": "60",
            "DARKPEARL_MOCK_SEED": "7",
            "DARKPEARL_DATABASE_URL": "postgresql://me@there/db",
            "PATH": "/bin",
        }
    )
    assert settings == Settings(
        port=9000,
        home=Path("/a b"),
        poll_seconds=60.0,
        mock_seed=7,
        database_url="postgresql://me@there/db",
    )


def test_an_empty_value_counts_as_not_set() -> None:
    """`DARKPEARL_DATABASE_URL= make run` runs the embedded server."""
    assert Settings.from_environment({"DARKPEARL_DATABASE_URL": ""}).database_url is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("BATCH_SIZE", "0"),
        ("BATCH_SIZE", "5001"),
        ("POLL_SECONDS", "0"),
        ("POLL_SECONDS", "nan"),
        ("MOCK_APPROVAL_RATE", "1.1"),
        ("GATEWAY", "barter"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_names_variable_value_and_what_is_allowed(name: str, value: str) -> None:
    """One line is enough to put it right."""
    allowed = next(each.allowed for each in variables() if each.name == PREFIX + name)
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment({PREFIX + name: value})
    assert str(caught.value) == f"DARKPEARL_{name}: {value!r} is not allowed; give {allowed}"


def test_a_misspelt_name_is_an_error() -> None:
    """A setting that would do nothing is not accepted in silence."""
    with pytest.raises(ConfigError, match=r"DARKPEARL_PROT is no setting; known are .*_PORT"):
        Settings.from_environment({"DARKPEARL_PROT": "1"})


def test_names_of_the_test_suite_are_left_alone() -> None:
    """DARKPEARL_TEST_DATABASE_URL doesn't stop the processes that tests start."""
    assert Settings.from_environment({"DARKPEARL_TEST_DATABASE_URL": "x"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://me:secret@there"),
        ("DATABASE_URL", "postgresql://me:sec/secret@there/db"),
        ("DATABASE_URL", "postgresql://me:1/secret@there/db"),
        ("API_DATABASE_URL", "postgresql://me:sec@secret@there/db"),
        ("LISTENER_DATABASE_URL", "postgresql://me:sec?secret@there/db"),
        ("JWT_SECRET", "a short secret"),
    ],
)
def test_a_bad_secret_is_not_repeated(name: str, value: str) -> None:
    """A password in it doesn't reach a log; nor does one that would be taken for a host."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment({PREFIX + name: value})
    assert "secret" not in str(caught.value).lower().replace("jwt_secret", "")


LONG = "x" * 16
TLS = {"JWT_JWKS": "https://issuer.example/keys", "JWT_AUDIENCE": "shop"}


@pytest.mark.parametrize(
    ("name", "weak", "strong"),
    [
        ("JWT_JWKS", {"JWT_JWKS": "http://issuer.example/keys"}, TLS),
        ("JWT_JWKS", {"JWT_JWKS": "http://127.0.0.1/keys"}, {**TLS, "JWT_JWKS": "/etc/keys.json"}),
        ("JWT_AUDIENCE", {"JWT_JWKS": "/etc/keys.json"}, TLS),
        ("JWT_AUDIENCE", {"JWT_JWKS": TLS["JWT_JWKS"]}, TLS),
        ("GATEWAY_URL", {"GATEWAY_URL": "http://pay"}, {"GATEWAY_URL": "https://pay"}),
        ("WEBHOOK_SECRET", {"WEBHOOK_SECRET": "x"}, {"WEBHOOK_SECRET": LONG}),
        ("WEBHOOK_SECRET", {"WEBHOOK_SECRET": f"{LONG}, y"}, {"WEBHOOK_SECRET": f"{LONG},"}),
    ],
)
def test_production_takes_nothing_that_others_could_forge(
    name: str, weak: dict[str, str], strong: dict[str, str]
) -> None:
    """One line names what is too weak, and repeats none of it; development takes it."""

    def read(environment: str, given: dict[str, str]) -> Settings:
        named = {PREFIX + each: value for each, value in given.items()}
        return Settings.from_environment({"DARKPEARL_ENVIRONMENT": environment, **named})

    with pytest.raises(ConfigError, match=f"^{PREFIX}{name}: in production it has to be ") as told:
        read("production", weak)
    assert not any(f" {value}" in str(told.value) for value in weak.values())
    assert read("production", strong)
    assert read("development", weak)


def test_settings_show_no_secrets() -> None:
    """However they get into a message or a traceback."""
    settings = Settings(
        database_url="postgresql://me:swordfish@there", jwt_secret="swordfish" * 4, port=9000
    )
    assert "swordfish" not in f"{settings} {settings!r}"
    assert "port=9000" in repr(settings)


def test_every_setting_is_documented() -> None:
    """The list that `darkpearl settings` prints has no gaps."""
    assert [each.name for each in variables()] == [
        PREFIX + name.upper() for name in Settings.__struct_fields__
    ]
    assert all(each.description and each.allowed for each in variables())


def test_docs_settings_lists_every_setting_and_nothing_else() -> None:
    """docs/settings.md has each variable once, with its default, values, unit and description."""
    rows = re.findall(r"^\| `DARKPEARL_.*$", SETTINGS.read_text(), re.MULTILINE)
    stated = [[cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in rows]
    assert sorted(stated) == sorted(
        [each.name, each.default, each.allowed, each.description] for each in variables()
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("POLL_SECONDS", "a number of seconds above 0 up to 3600"),
        ("IDEMPOTENCY_KEY_HOURS", "a whole number of hours from 1 to 8760"),
        ("BATCH_SIZE", "a whole number from 1 to 5000"),
    ],
)
def test_what_is_allowed_says_the_unit(name: str, words: str) -> None:
    """A time is never a number alone."""
    assert words in {each.allowed for each in variables() if each.name == PREFIX + name}


def test_settings_cannot_be_changed() -> None:
    """Code that has them may rely on them."""
    with pytest.raises(AttributeError):
        Settings().port = 1  # type: ignore[misc]
    assert msgspec.structs.replace(Settings(), port=1).port == 1
