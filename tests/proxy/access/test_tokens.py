"""Vault keys: minted, read, compared."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.proxy.access.tokens import (
    CHECKSUM_LENGTH,
    ID_LENGTH,
    SECRET_LENGTH,
    Mode,
    hash_token,
    matches,
    mint,
    parse_token,
)


def counting() -> Callable[[int], bytes]:
    """Return bytes that differ at every call."""
    calls = itertools.count(1)
    return lambda n: hashlib.sha512(str(next(calls)).encode()).digest()[:n]


MODES: list[Mode] = ["test", "live"]


@pytest.mark.parametrize("mode", MODES)
def test_a_minted_token_is_read_back(mode: Mode) -> None:
    minted = mint(mode, counting())
    assert minted.token.startswith(f"vk_{mode}_{minted.id}_")
    assert parse_token(minted.token) == (minted.id, mode)
    assert len(minted.id) == ID_LENGTH


def test_a_secret_has_at_least_160_bits_and_no_two_are_alike() -> None:
    # Base 32: five bits a character.
    assert SECRET_LENGTH * 5 >= 160
    random_bytes = counting()
    tokens = {mint("test", random_bytes).token for _ in range(100)}
    assert len(tokens) == 100


def test_the_store_and_a_repr_never_hold_the_token() -> None:
    minted = mint("live", counting())
    secret = minted.token.rsplit("_", 1)[1]
    assert secret not in repr(minted)
    assert secret not in repr(parse_token(minted.token))
    assert minted.token_hash == hashlib.sha256(minted.token.encode()).hexdigest()


@given(st.data())
def test_a_typo_anywhere_is_seen_without_the_store(data: st.DataObject) -> None:
    token = mint("test", counting()).token
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(
        st.sampled_from("abcdefghijklmnopqrstuvwxyz234567_").filter(
            lambda character: character != token[place]
        )
    )
    assert parse_token(token[:place] + other + token[place + 1 :]) is None


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{token}a",
        " {token}",
        "{token}\n",
        "{short}",
        "{unchecked}",
        "{upper}",
        "vk_live_{rest}",
        "sk_test_{rest}",
        "sk_live_aaaaaaaaaaaaaaaaaaaaaaaa",
        "{token}{token}",
    ],
)
def test_what_is_no_token_is_none(template: str) -> None:
    token = mint("test", counting()).token
    text = template.format(
        token=token,
        short=token[:-1],
        unchecked=token[:-CHECKSUM_LENGTH],
        upper=token.upper(),
        rest=token.removeprefix("vk_test_"),
    )
    assert parse_token(text) is None


def test_a_token_matches_its_own_hash_only() -> None:
    random_bytes = counting()
    one, other = mint("test", random_bytes), mint("test", random_bytes)
    assert matches(one.token, one.token_hash)
    assert not matches(other.token, one.token_hash)
    assert not matches(one.token, "")
    assert not matches("é", hash_token(one.token))
