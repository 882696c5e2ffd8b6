"""Two listeners: nothing of the operators' is on the agents' address, nor the other way round."""

from __future__ import annotations

import pytest

from tests.attacks.attacked_proxy import AttackedProxy
from tests.attacks.wire import Answer, ask

FAMILY = "listeners"
_OPERATORS_PATHS = """
/ /metrics /dashboard /login /sessions /static/style.css /admin /admin/ /admin/v1/keys
/admin/v1/operations /admin/v1/spend /admin/v1/audit /admin/v1/approvals /admin//v1/keys
/stripe/admin/v1/keys /keybrake/v1/keys /keybrake/admin/v1/keys /keybrake/v1/../../admin/v1/keys
/_sandbox/state
""".split()
_UNSERVED_PATHS = """
/.well-known/oauth-protected-resource /.well-known/oauth-protected-resource/mcp
/.well-known/oauth-authorization-server /.well-known/openid-configuration/mcp
/register /authorize /token / /favicon.ico /mcp/mcp /sse /V1/charges
""".split()
_AGENTS_PATHS = "/v1/charges /stripe/v1/charges /mcp /keybrake/v1/key /_sandbox/state".split()


def admin_token(attacked: AttackedProxy) -> str:
    """Return the operators' token of the first run."""
    lines = (attacked.folder / "ledger.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)["KEYBRAKE_ADMIN_TOKEN"]


def _get(
    attacked: AttackedProxy, path: str, token: str | None, *, operators: bool = False
) -> Answer:
    address = attacked.operators if operators else attacked.agents
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"GET {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n{bearer}\r\n"
    return ask(address, head.encode())


@pytest.mark.parametrize("path", _OPERATORS_PATHS)
def test_an_operators_token_is_no_key_on_the_agents_address(
    attacked: AttackedProxy, path: str
) -> None:
    before = attacked.reached()
    answer = _get(attacked, path, admin_token(attacked))
    ours = path.startswith(("/stripe/", "/keybrake/"))
    assert (answer.status, answer.code) == (
        (401, "vault_key_unknown") if ours else (404, "path_unknown")
    )
    attacked.expected["vault_key_unknown"] += 1
    assert attacked.reached() == before


@pytest.mark.parametrize("token", [None, "vk_test_wrong"])
def test_a_path_that_nobody_serves_is_not_found_whoever_asks(
    attacked: AttackedProxy, token: str | None
) -> None:
    for path in _UNSERVED_PATHS:
        answer = _get(attacked, path, token)
        assert (answer.status, answer.code) == (404, "path_unknown")
        attacked.expected["vault_key_missing" if token is None else "vault_key_unknown"] += 1


@pytest.mark.parametrize("path", ["/mcp", "/mcp/"])
def test_a_wrong_token_is_told_apart_from_none(attacked: AttackedProxy, path: str) -> None:
    none, wrong = _get(attacked, path, None), _get(attacked, path, "vk_test_wrong")
    assert (none.status, wrong.status) == (401, 401)
    assert "is needed" in none.body.decode()
    assert "error=" not in none.headers["www-authenticate"]
    assert "not a vault key of this proxy" in wrong.body.decode()
    assert 'error="invalid_token"' in wrong.headers["www-authenticate"]
    attacked.expected["vault_key_unknown"] += 1


@pytest.mark.parametrize("path", _OPERATORS_PATHS)
def test_a_vault_key_finds_nothing_of_the_operators_on_the_agents_address(
    attacked: AttackedProxy, path: str
) -> None:
    key = attacked.issue()
    before = attacked.reached()
    answer = _get(attacked, path, key.token)
    assert (answer.status, answer.code) in {(404, "path_unknown"), (400, "path_invalid")}
    assert [row["code"] for row in attacked.rows(key)] == [answer.code]
    assert attacked.reached() == before


@pytest.mark.parametrize("path", [*_AGENTS_PATHS, "/admin/v1/keys", "/admin/v1/audit"])
def test_a_vault_key_is_no_operators_token(attacked: AttackedProxy, path: str) -> None:
    key = attacked.issue()
    before = attacked.reached()
    answer = _get(attacked, path, key.token, operators=True)
    assert answer.status in {401, 404}
    assert key.token not in answer.body.decode()
    assert attacked.reached() == before
    assert attacked.rows(key) == []


@pytest.mark.parametrize("path", _AGENTS_PATHS)
def test_nothing_of_the_agents_is_on_the_operators_address(
    attacked: AttackedProxy, path: str
) -> None:
    before = attacked.reached()
    assert _get(attacked, path, admin_token(attacked), operators=True).status == 404
    assert attacked.reached() == before


def test_the_operators_own_token_opens_their_address(attacked: AttackedProxy) -> None:
    assert _get(attacked, "/admin/v1/keys", admin_token(attacked), operators=True).status == 200


def test_an_unknown_host_finds_no_operators_listener(attacked: AttackedProxy) -> None:
    bearer = f"Authorization: Bearer {admin_token(attacked)}"
    head = f"GET /admin/v1/keys HTTP/1.1\r\nHost: evil.example\r\n{bearer}\r\n\r\n"
    answer = ask(attacked.operators, head.encode())
    assert (answer.status, answer.code) == (421, "host_unknown")
    attacked.expected["host_unknown"] += 1


def test_garbage_is_answered_in_stripes_shape_on_the_operators_address_too(
    attacked: AttackedProxy,
) -> None:
    answer = ask(attacked.operators, b"\x16\x03\x01\r\n\r\n", closes=True)
    assert (answer.status, answer.code) == (400, "body_invalid")
    attacked.expected["body_invalid"] += 1
