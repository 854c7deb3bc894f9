"""The configuration file: defaults, sections, and mistakes told with their place."""

import pytest

from bot.config import ConfigError, load
from nips.keys import SecretKey
from nips.nip47 import format_uri

URI = format_uri(SecretKey.generate().pubkey, "ws://127.0.0.1:1", SecretKey.generate())


def configured(tmp_path, text, environment=None):
    path = tmp_path / "enclaved.toml"
    path.write_text(text)
    return load(path, {"ENCLAVED_WALLET_URI": URI} if environment is None else environment)


def test_an_empty_file_gives_the_defaults(tmp_path):
    config = configured(tmp_path, "")

    assert (5_000, 3_600, 100) == (
        config.policy.tariff.price_msat, config.policy.tariff.interval_s, config.policy.capacity.total_units,
    )  # fmt: skip


def test_nested_sections(tmp_path):
    config = configured(
        tmp_path,
        '[policy.tariff]\nprice_msat = 7\n[relays]\nurls = ["wss://a"]\n[server]\nname = "x"',
    )

    assert (7, ("wss://a",), "x") == (
        config.policy.tariff.price_msat,
        config.relays.urls,
        config.server.name,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serv]", "unknown section [serv]"),
        ("[server]\nnam = 'x'", "[server] unknown name 'nam'"),
        ("[policy]\ngrace_s = '1'", "policy.grace_s must be int"),
        ("[policy]\ngrace_s = true", "policy.grace_s must be int"),
        ("[policy.tariff]\nprice_msat = 0", "[policy.tariff] a tariff"),
        ("[relays]\nurls = 'x'", "relays.urls must be"),
        ("[relays]\nurls = ['https://a.example']", "[relays] a relay URL begins with ws://"),
        ("not toml", "is not TOML"),
    ],
)
def test_mistakes_are_reported_with_their_place(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, text)
    assert words in str(caught.value)


def test_a_missing_wallet_says_how_to_give_one(tmp_path):
    with pytest.raises(ConfigError, match="ENCLAVED_WALLET_URI"):
        configured(tmp_path, "", {})
    with pytest.raises(ConfigError, match="uri_file"):
        configured(tmp_path, '[wallet]\nuri_file = "/none"', {})


def test_a_wallet_of_the_enclaves_own_has_no_uri_beside_it(tmp_path):
    assert None is configured(tmp_path, '[wallet]\nbuiltin = "wallet"', {}).wallet_uri
    with pytest.raises(ConfigError, match="which of the two holds the money"):
        configured(tmp_path, '[wallet]\nbuiltin = "wallet"')


def test_a_bad_wallet_uri_is_not_repeated(tmp_path):
    secret = SecretKey.generate().reveal_secret().hex()
    with pytest.raises(ConfigError) as caught:
        configured(
            tmp_path, "", {"ENCLAVED_WALLET_URI": f"nostr+walletconnect://x?secret={secret}"}
        )
    assert secret not in str(caught.value)
    assert secret not in repr(configured(tmp_path, ""))


def test_a_relay_is_named_once_however_it_is_spelt(tmp_path):
    urls = '["WSS://A.Example/", "wss://a.example:443", "ws://b.example:80/path", "ws://b.example:81"]'
    config = configured(tmp_path, f"[relays]\nurls = {urls}")

    assert config.relays.urls == (
        "wss://a.example",
        "ws://b.example/path",
        "ws://b.example:81",
    )
