"""What is shipped to host kb-mcp with: linted, held against schemas, and the SQL really run."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # PyYAML ships no types
from cfnlint.api import ManualArgs, lint

from kb_mcp.proxy.stores.postgres.connection import connector
from kb_mcp.proxy.stores.postgres.database import check_schema, migrate
from tests.postgres import binary, postgres, unprivileged

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def variables(value: object) -> set[str]:
    return set(re.findall(r"KEYBRAKE_[A-Z_]+", str(value)))


def test_the_fargate_template_is_clean() -> None:
    text = (DEPLOY / "fargate" / "template.yaml").read_text(encoding="utf-8")
    found = lint(text, config=ManualArgs(regions=["us-east-1"]))
    assert [f"{each.rule.id} {each.message}" for each in found] == []


def test_the_manifests_match_the_schemas_of_kubernetes() -> None:
    try:
        validator: Any = importlib.import_module("kubernetes_validate")
    except ImportError:
        pytest.skip("kubernetes-validate is not installed")
    for document in documents("kubernetes/keybrake.yaml"):
        validator.validate(document, "1.34", strict=True)


def test_every_variable_that_is_set_is_a_setting() -> None:
    from kb_mcp import settings

    names = set()
    for name in ("compose.yaml", "kubernetes/keybrake.yaml"):
        names |= variables(documents(name))
    names |= variables((DEPLOY / "fargate" / "template.yaml").read_text(encoding="utf-8"))
    assert {"KEYBRAKE_DATABASE_URL_FILE", "KEYBRAKE_MASTER_KEY"} <= names
    assert names - settings._KNOWN == set()  # noqa: SLF001 the list that typos are held against


def handed_by_compose() -> dict[str, list[str]]:
    """Return the names of the secrets that each service is handed."""
    (script,) = documents("compose.yaml")[0]["services"]["secrets"]["command"]
    lines = re.findall(r"^hand \d+ /handed/(\w+) (.+)$", script, re.MULTILINE)
    return {service: names.split() for service, names in lines}


def test_every_service_is_handed_the_secrets_that_it_names() -> None:
    compose = documents("compose.yaml")[0]["services"]
    handed = handed_by_compose()
    assert handed.keys() == {"postgres", "migrate", "proxy"}
    for service, names in handed.items():
        assert f"for-{service}:/secrets:ro" in compose[service]["volumes"]
        said = re.findall(r"/secrets/(\w+)", str(compose[service].get("environment")))
        assert set(said) <= set(names)
        # Mounted by compose itself, a file keeps the owner that it has on the host.
        assert "secrets" not in compose[service]
    first_start = (DEPLOY / "postgres" / "first-start.sh").read_text(encoding="utf-8")
    assert set(re.findall(r"/secrets/(\w+)", first_start)) <= set(handed["postgres"])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a new folder that every user may pass through."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def test_secrets_of_the_hosts_user_are_readable_by_who_needs_them_alone(open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("files are given to other users by root alone")
    given, handed = open_folder / "secrets", open_folder / "handed"
    given.mkdir()
    for name in documents("compose.yaml")[0]["secrets"]:
        (given / name).write_text(name)
        (given / name).chmod(0o600)
        os.chown(given / name, 1000, 1000)
    for service in handed_by_compose():
        (handed / service).mkdir(parents=True)
    (script,) = documents("compose.yaml")[0]["services"]["secrets"]["command"]
    script = script.replace("$$", "$").replace("/run/secrets", str(given))
    for _ in range(2):  # a second `up` hands them over again
        command = ["sh", "-euc", script.replace("/handed", str(handed))]
        subprocess.run(command, check=True)
    for user, mine in ((10001, {"proxy", "migrate"}), (999, {"postgres"}), (1000, set())):
        for service, names in handed_by_compose().items():
            for name in names:
                read = subprocess.run(
                    ["cat", str(handed / service / name)], user=user, group=user, extra_groups=[],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert read.stdout == (name if service in mine else "")


def test_no_proxy_is_given_the_owners_url() -> None:
    handed = handed_by_compose()
    assert "owner_url" not in handed["proxy"]
    assert "owner_url" in handed["migrate"]
    kinds = {each["kind"]: each for each in documents("kubernetes/keybrake.yaml")}
    assert "keybrake-owner" not in str(kinds["StatefulSet"])
    assert "keybrake-owner" in str(kinds["Job"])


def test_every_secret_of_the_compose_file_is_declared_once_and_comes_from_a_file() -> None:
    compose = documents("compose.yaml")[0]
    used = {name for each in compose["services"].values() for name in each.get("secrets", ())}
    assert used == compose["secrets"].keys()
    assert all(each["file"].startswith("secrets/") for each in compose["secrets"].values())


def test_the_container_takes_every_pin_by_hash() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install[^&]*", text)
    assert len(installs) == 4
    assert all("--require-hashes" in each or "--no-index" in each for each in installs)
    program = re.search(r"awk '(.*?)' locks/dev.txt", text)
    assert program is not None
    pinned = subprocess.run(
        ["awk", program[1], str(DEPLOY.parent / "locks" / "dev.txt")],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    names = re.findall(r"^([a-z-]+)==", pinned, re.MULTILINE)
    assert names == ["psycopg", "psycopg-binary", "psycopg-pool"]
    assert pinned.count("--hash=sha256:") >= 3


def test_the_roles_are_made_by_the_script_and_one_migrates_for_the_other() -> None:
    with postgres() as server:
        secrets = {"KEYBRAKE_OWNER_PASSWORD": "o'wner", "KEYBRAKE_PROXY_PASSWORD": "p$roxy"}
        with (DEPLOY / "postgres" / "roles.sql").open() as script:
            subprocess.run(
                [str(binary("psql")), "-v", "ON_ERROR_STOP=1", "-d", server.url(), "-f", "-"],
                stdin=script, check=True, capture_output=True,
                env={"PATH": os.defpath, **secrets}, **unprivileged(),
            )  # fmt: skip
        place = f"host=127.0.0.1 port={server.port} dbname=keybrake"
        with connector(f"{place} user=keybrake_owner password='o\\'wner'")() as owner:
            number = migrate(owner, "keybrake_proxy")
        with connector(f"{place} user=keybrake_proxy password=p$roxy")() as proxy:
            assert check_schema(proxy) == number
