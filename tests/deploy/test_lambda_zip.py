"""The Lambda deployment zip, unpacked and run by a Python that has nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.proxy_processes import cluster

ROOT = Path(__file__).resolve().parents[2]
UNZIPPED_MAX = 250 * 1024 * 1024  # Lambda's own bound

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FUNCTION = """
import json, sys
from kb_mcp.lambda_entry import handler
events = [json.loads(line) for line in sys.stdin]
print(json.dumps([handler(event, None) for event in events]))
print(json.dumps(sorted({"mcp", "starlette", "uvicorn", "cryptography"} & set(sys.modules))))
print(sys.modules["pydantic"].__file__)
"""
BILL = {"customer_id": "cus_Zip", "amount_cents": "2900", "billing_period": "2026-11"}


@pytest.fixture(scope="module")
def unzipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lambda")
    out, version = folder / "function.zip", f"{sys.version_info.major}.{sys.version_info.minor}"
    script = ROOT / "deploy" / "bedrock" / "build_zip.py"
    command = [sys.executable, str(script), "--out", str(out), "--python", version]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(out) as made:
        made.extractall(folder / "files")
    return folder / "files"


def test_it_holds_wing_a_and_no_server(unzipped: Path) -> None:
    names = {each.name for each in unzipped.iterdir()}

    assert {"kb_mcp", "httpx", "pydantic"} <= names
    beyond = {"mcp", "mcp_types", "starlette", "uvicorn", "cryptography", "boto3", "stripe"}
    assert not beyond & names
    assert not (unzipped / "kb_mcp" / "sandbox").exists()
    assert sum(f.stat().st_size for f in unzipped.rglob("*") if f.is_file()) < UNZIPPED_MAX


def test_it_charges_once_on_a_clean_python(unzipped: Path, tmp_path: Path) -> None:
    parameters = [{"name": n, "type": "string", "value": v} for n, v in BILL.items()]
    event = {"actionGroup": "billing", "function": "charge", "parameters": parameters}
    with cluster(tmp_path) as place:
        proxy = place.start_proxy()
        environ = {
            "AWS_LAMBDA_FUNCTION_NAME": "billing",
            "KEYBRAKE_PROXY_URL": proxy.url,
            "KEYBRAKE_VAULT_KEY_BILLING": place.issue(),
            "PYTHONPATH": str(unzipped),
        }
        # -S: no site-packages, so that nothing but the zip can be imported.
        done = subprocess.run(
            [sys.executable, "-S", "-c", FUNCTION],
            input=f"{json.dumps(event)}\n" * 2,
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        charges = place.charges()

    assert done.returncode == 0, done.stderr
    answers, loaded, pydantic = done.stdout.splitlines()
    bodies = [
        json.loads(each["response"]["functionResponse"]["responseBody"]["TEXT"]["body"])
        for each in json.loads(answers)
    ]
    assert [(b["status"], b["already_charged"]) for b in bodies] == [
        ("succeeded", False),
        ("succeeded", True),
    ]
    assert json.loads(loaded) == []
    assert Path(pydantic).is_relative_to(unzipped)
    assert [each["id"] for each in charges] == [bodies[0]["charge_id"]]


def test_with_an_embedded_proxy_asked_for_it_says_that_it_holds_none(
    unzipped: Path, tmp_path: Path
) -> None:
    parameters = [{"name": n, "type": "string", "value": v} for n, v in BILL.items()]
    event = {"actionGroup": "billing", "function": "charge", "parameters": parameters}
    environ = {
        "AWS_LAMBDA_FUNCTION_NAME": "billing",
        "KEYBRAKE_EMBEDDED": "1",
        "KEYBRAKE_VAULT_KEY_BILLING": "vk_test_x",
        "PYTHONPATH": str(unzipped),
    }
    done = subprocess.run(
        [sys.executable, "-S", "-c", FUNCTION],
        input=json.dumps(event),
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[0])[0]["response"]["functionResponse"]
    assert answer["responseState"] == "FAILURE"
    assert json.loads(answer["responseBody"]["TEXT"]["body"])["status"] == "unavailable"
    # What an operator finds in the function's log, and no model is told.
    assert "KEYBRAKE_EMBEDDED is set, but what is deployed here holds no proxy" in done.stderr
    assert "Set KEYBRAKE_PROXY_URL to a proxy" in done.stderr
    assert "KEYBRAKE" not in done.stdout
