"""Shell completion as a shell asks for it: Debian's bash, with the script that click writes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.machine import Machine

ASK = """
eval "$(_KB_MCP_COMPLETE=bash_source kb-mcp)"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_kb_mcp_completion kb-mcp
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(machine: Machine, *words: str, **env: str) -> list[str]:
    """Return what bash offers for the last of `words`; nothing is said on stderr."""
    if shutil.which("bash") is None:
        pytest.skip("no bash on this machine")
    folder = str(Path(sys.executable).parent)
    path = {"PATH": f"{folder}:{machine.process_env['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", "kb-mcp", *words],
        env=machine.process_env | path | env,
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def test_commands_options_and_roles_are_completed(machine: Machine) -> None:
    assert completed(machine, "recon") == ["reconcile"]
    assert completed(machine, "keys", "re") == ["revoke"]
    assert completed(machine, "keys", "issue", "--pol") == ["--policy"]
    offered = completed(machine, "keys", "issue", "--role", "billing")
    assert {"billing", "billing-with-status"} <= set(offered)
    assert completed(machine, "audit", "list", "--code", "spend_") == ["spend_cap_exceeded"]


def test_the_ids_of_keys_are_completed_from_the_store_as_it_is(machine: Machine) -> None:
    ids = {machine.token("--label", "<b>\x1b[2J").split("_")[2] for _ in range(2)}
    before = machine.store.read_bytes()
    assert set(completed(machine, "keys", "revoke", "")) == ids
    (one, other) = sorted(ids)
    assert completed(machine, "keys", "show", other) == [other]
    assert one in completed(machine, "spend", "--key", "")
    assert machine.store.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"no database at all" * 100])
def test_where_there_is_no_store_nothing_is_offered_and_nothing_made(
    machine: Machine, content: bytes | None
) -> None:
    if content is not None:
        machine.store.write_bytes(content)
    assert completed(machine, "keys", "revoke", "") == []
    assert machine.store.exists() == (content is not None)


def test_settings_that_cannot_be_meant_do_not_disturb_the_shell(machine: Machine) -> None:
    broken = {"KEYBRAKE_DATABASE_URL": "oracle://nowhere"}
    assert completed(machine, "keys", "revoke", "", **broken) == []
