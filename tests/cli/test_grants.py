from __future__ import annotations

import pytest

from tests.cli.machine import Machine

ISSUER = "https://idp.example"


def key_of(machine: Machine) -> str:
    issued = machine.json("keys", "issue", "--role", "billing", "--daily-cap", "100.00usd")
    return str(issued["id"])


def add(machine: Machine, key: str, *matches: str, code: int = 0) -> str:
    given = [part for match in matches for part in ("--match", match)]
    done = machine.run("grants", "add", "--issuer", ISSUER, *given, "--key", key, code=code)
    return done.stdout if code == 0 else done.stderr


def test_a_grant_is_added_listed_and_removed(machine: Machine) -> None:
    key = key_of(machine)
    assert "No grants" in machine.run("grants", "list").stdout

    shown = add(machine, key, "sub=agent-*", "org=acme")
    (listed,) = machine.json("grants", "list")
    removed = machine.json("grants", "remove", listed["id"])

    assert listed["id"] in shown
    assert (listed["issuer"], listed["key_id"]) == (ISSUER, key)
    assert listed["match"] == {"org": "acme", "sub": "agent-*"}
    assert (removed["under_way"], removed["removed_at"] is None) == (0, False)
    assert machine.json("grants", "list") == []


@pytest.mark.parametrize(
    ("matches", "told"),
    [(("sub",), "CLAIM=VALUE"), (("sub=a", "sub=b"), "twice"), (("iss=x",), "--issuer")],
)
def test_a_match_that_cannot_be_meant_is_wrong_usage(
    machine: Machine, matches: tuple[str, ...], told: str
) -> None:
    assert told in add(machine, key_of(machine), *matches, code=2)


def test_what_cannot_be_granted_is_said_in_a_line_and_a_hint(machine: Machine) -> None:
    key = key_of(machine)
    add(machine, key, "sub=agent-7")

    for told in (
        add(machine, key, "sub=agent-*", code=1),
        add(machine, "nosuchkeyaaa", "sub=x", code=1),
        machine.run("grants", "remove", "grt_none", code=1).stderr,
    ):
        assert len(told.splitlines()) == 2
        assert "Traceback" not in told


def test_an_issuer_that_the_settings_do_not_name_is_noted(machine: Machine) -> None:
    done = machine.run(
        *("grants", "add", "--issuer", ISSUER, "--match", "sub=a", "--key", key_of(machine)),
        KEYBRAKE_OAUTH_ISSUERS="https://other.example",
        KEYBRAKE_OAUTH_AUDIENCE="https://keybrake.example/mcp",
    )

    assert "does not name" in done.stderr
