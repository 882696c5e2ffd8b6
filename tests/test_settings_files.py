"""Where a ledger lies, and secrets as people and consoles write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kb_mcp.settings import Settings, SettingsError, load_settings


def load(**variables: str) -> Settings:
    return load_settings({f"KEYBRAKE_{name}": value for name, value in variables.items()})


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///~/kb.db", "/home/ann/kb.db"),
        ("sqlite:///$HOME/kb.db", "/home/ann/kb.db"),
        ("sqlite:///${HOME}/kb.db", "/home/ann/kb.db"),
        ("sqlite:////~/kb.db", "/home/ann/kb.db"),
        ("sqlite:////$HOME/kb.db", "/home/ann/kb.db"),
        ("sqlite:////srv/kb.db", "/srv/kb.db"),
    ],
)
def test_the_home_folder_is_put_in_its_place(url: str, file: str) -> None:
    settings = load_settings({"HOME": "/home/ann/", "KEYBRAKE_DATABASE_URL": url})
    assert settings.database_path == Path(file)


@pytest.mark.parametrize("there", [False, True])
def test_a_relative_ledger_is_refused_with_the_address_it_meant(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "ledger.db").touch()
    with pytest.raises(SettingsError) as refusal:
        load(DATABASE_URL="sqlite:///./ledger.db")
    said = "exists" if there else "does not exist"
    assert f"sqlite:///{tmp_path}/ledger.db, which {said}." in str(refusal.value)


TOKEN = "vk_test_1_a"


@pytest.mark.parametrize(
    "text",
    [
        f"{TOKEN}\n",
        f"\ufeff{TOKEN}\r\n",
        f'"{TOKEN}"\n',
        f"'{TOKEN}'",
        f'{{"token": "{TOKEN}"}}',
        f'{{\n  "token": "{TOKEN}\\n",\n  "note": "billing", "version": 3}}',
        f'{{"a": "{TOKEN}", "b": "{TOKEN}"}}',
    ],
)
@pytest.mark.parametrize("filed", [False, True], ids=["in the variable", "in a file"])
def test_a_vault_key_is_understood_as_people_and_consoles_write_it(
    text: str, filed: bool, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(text)
    named = {"VAULT_KEY_AUDIT_FILE": str(tmp_path / "key")} if filed else {"VAULT_KEY_AUDIT": text}
    key = load(**named).vault_key_audit
    assert key is not None
    assert (key.reveal(), key.reread().reveal()) == (TOKEN, TOKEN)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ('{"token": {"inner": "vk_test_1_hush"}}', "without a vault key"),
        ('{"a": "vk_test_1_hush", "b": "vk_test_2_hush"}', "several: a, b"),
        ('{"vk_test_1_hush": "vk_test_1_hush", "b": "vk_test_2_hush"}', "is not shown"),
        ('{"a": "vk_test_1_hush", "a": "vk_test_2_hush"}', "one name twice"),
        ("[" * 60_000, "is not a vault key"),
        ('{"a":' * 10_000, "cannot be read"),
        ("vk_test_1_hush\nvk_test_2_hush", "is not a vault key"),
        ("TOKEN=vk_test_1_hush", "is not a vault key"),
        ("Bearer vk_test_1_hush", "is not a vault key"),
    ],
    ids=lambda text: str(text)[:20],
)
def test_a_file_that_holds_no_one_vault_key_is_refused_at_start_and_when_read_again(
    text: str, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(TOKEN)
    key = load(VAULT_KEY_AUDIT_FILE=str(file)).vault_key_audit
    assert key is not None
    file.write_text(text)
    for read in (lambda: load(VAULT_KEY_AUDIT_FILE=str(file)), key.reread):
        with pytest.raises(SettingsError) as refusal:
            read()
        assert refusal.value.variable == "KEYBRAKE_VAULT_KEY_AUDIT"
        assert problem in refusal.value.problem
        assert "hush" not in str(refusal.value)


def test_a_stripe_key_is_understood_like_a_vault_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text('{"api_key": "rk_test_abc"}')
    settings = load(STRIPE_KEY_FILE=str(tmp_path / "key"))
    assert settings.stripe_key is not None
    assert settings.stripe_key.reveal() == "rk_test_abc"
