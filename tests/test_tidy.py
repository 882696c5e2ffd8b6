"""Project rules that no linter knows, held over every file that git tracks or would track."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50

# Put together from parts, or this file would break its own rule.
FOREIGN = re.compile(
    "|".join(
        [
            r"py" + r"pi\.org",
            r"python" + r"hosted\.org",
            r"npm" + r"js\.org",
            r"deb\." + r"debian\.org",
            r"/wo" + r"rk/(?:main|shared)",
        ]
    )
)
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|NotImplemented" + r"Error)\b")
EXEMPTION = re.compile(r"#\s*(?:no" + r"qa|type:\s*ig" + r"nore)\b(?P<rest>.*)")
REASON = re.compile(
    r"^(?:\[[\w, -]+\]|:\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*)\s*(?:-|#|:)*\s*[A-Za-z`]\S*\s+\S+"
)
WAITING = re.compile(r"\btime\.sl" + r"eep\(|\basyncio\.sl" + r"eep\((?!0\))|unittest\.mo" + r"ck")


@cache
def texts() -> dict[str, str]:
    """Return the text of every file of the project by its path; binary files are left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = {}
    for name in filter(None, listing.split("\0")):
        try:
            found[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue
    return found


def python(*folders: str) -> dict[str, str]:
    return {n: t for n, t in texts().items() if n.endswith(".py") and n.startswith(folders)}


def matches(pattern: re.Pattern[str], files: dict[str, str]) -> list[str]:
    lines = ((n, i, line) for n, t in files.items() for i, line in enumerate(t.splitlines(), 1))
    return [f"{n}:{i}: {line.strip()}" for n, i, line in lines if pattern.search(line)]


def test_git_lists_the_files_of_this_project() -> None:
    assert {"kb_mcp/settings.py", "tests/test_tidy.py"} <= texts().keys()


def test_no_module_is_longer_than_a_sitting() -> None:
    lengths = {n: t.count("\n") for n, t in python("kb_mcp/", "tests/", "benchmarks/").items()}
    assert {n: length for n, length in lengths.items() if length > FILE_LINES_MAX} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    def long_functions() -> Iterator[str]:
        for name, text in python("kb_mcp/").items():
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    yield f"{name}:{node.lineno}: {node.name} has {length} lines"

    assert list(long_functions()) == []


def test_every_module_opens_with_its_job_and_its_floor() -> None:
    modules = {n: t for n, t in python("kb_mcp/").items() if not n.endswith("__init__.py")}
    docstrings = {n: ast.get_docstring(ast.parse(t)) or "" for n, t in modules.items()}
    assert [n for n, docstring in docstrings.items() if "Floor:" not in docstring] == []


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    assert matches(FOREIGN, texts()) == []


def test_nothing_is_left_unfinished() -> None:
    assert matches(UNFINISHED, python("kb_mcp/")) == []


def test_every_exemption_says_why() -> None:
    found = matches(EXEMPTION, python("kb_mcp/", "tests/", "benchmarks/"))
    rests = {line: EXEMPTION.search(line) for line in found}
    assert [line for line, rest in rests.items() if rest and not REASON.search(rest["rest"])] == []


def test_no_test_sleeps_or_mocks() -> None:
    assert matches(WAITING, python("tests/")) == []


def test_wing_b_knows_no_float() -> None:
    assert matches(re.compile(r"\bfloat\("), python("kb_mcp/proxy/")) == []
    assert matches(re.compile(r"[:>|\[]\s*float\b"), python("kb_mcp/proxy/")) == []


def test_the_locks_agree_and_name_no_address() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[\w.-]+==[^ ]+", texts()[f"locks/{name}.txt"], re.MULTILINE))

    assert pins("run") | pins("build") <= pins("dev")
    assert (
        matches(
            re.compile(r"://|--index|--find-links"),
            {n: t for n, t in texts().items() if n.startswith("locks/")},
        )
        == []
    )
