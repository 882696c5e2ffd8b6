"""The audit chain: sealed, verified, and every break located."""

from __future__ import annotations

import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from kb_mcp.proxy.audit.chain import (
    GENESIS,
    AuditRow,
    Break,
    BreakReason,
    Head,
    WholeChain,
    canonical,
    clean_text,
    csv_cell,
    derive_key,
    row_hash,
    verify_chain,
)
from kb_mcp.proxy.ledger.records import AuditDraft

KEY = b"k" * 32
Chain = list[tuple[AuditRow, str]]


def chain(length: int, key: bytes = KEY, node: str = "n1") -> Chain:
    """Seal a chain of `length` rows."""
    rows: Chain = []
    previous = GENESIS
    for seq in range(1, length + 1):
        draft = AuditDraft(kind="decision", decision="proceed", amount=seq, path="/v1/charges")
        row = AuditRow(node=node, seq=seq, time=1000 * seq, **asdict(draft))
        rows.append((row, row_hash(key, previous, row)))
        previous = bytes.fromhex(rows[-1][1])
    return rows


def head(rows: Chain) -> Head:
    """Return the end of `rows`."""
    row, sealed = rows[-1]
    return Head(row.node, row.seq, sealed)


def test_a_chain_that_nobody_touched_verifies() -> None:
    rows = chain(5)
    assert verify_chain(rows, KEY, head(rows)) == WholeChain(5, head(rows))
    assert verify_chain([], KEY) == WholeChain(0, None)


def test_a_chain_that_grew_since_its_head_was_exported_verifies() -> None:
    rows = chain(5)
    assert verify_chain(rows, KEY, head(rows[:3])) == WholeChain(5, head(rows))


def test_a_chain_goes_on_after_an_archived_segment() -> None:
    rows = chain(5)
    assert verify_chain(rows[2:], KEY, after=head(rows[:2])) == WholeChain(3, head(rows))
    assert verify_chain(rows[2:], KEY) == Break("n1", 1, BreakReason.OUT_OF_ORDER)


OTHER_VALUES: dict[str, Any] = {"str": "other", "int": 99}


COLUMNS = {name: kind for name, kind in AuditRow.__annotations__.items() if name != "seq"}


@pytest.mark.parametrize("column", COLUMNS)
def test_an_edit_of_any_column_is_found_where_it_was_made(column: str) -> None:
    rows = chain(4)
    value = OTHER_VALUES[COLUMNS[column].split(" ")[0]]
    rows[2] = (replace(rows[2][0], **{column: value}), rows[2][1])
    broken = verify_chain(rows, KEY)
    assert isinstance(broken, Break)
    assert broken.row == 3


def test_an_edit_that_was_sealed_with_another_key_is_found() -> None:
    assert verify_chain(chain(3, key=b"x" * 32), KEY) == Break("n1", 1, BreakReason.EDITED)


def test_an_edited_hash_is_found() -> None:
    rows = chain(3)
    rows[1] = (rows[1][0], "00" * 32)
    assert verify_chain(rows, KEY) == Break("n1", 2, BreakReason.EDITED)
    rows[1] = (rows[1][0], "é")
    assert verify_chain(rows, KEY) == Break("n1", 2, BreakReason.EDITED)


@pytest.mark.parametrize(
    ("order", "seq"),
    [([0, 2, 1, 3], 2), ([0, 2, 3], 2), ([1, 2, 3], 1), ([0, 1, 1, 2, 3], 3), ([0, 1, 2, 2], 4)],
)
def test_a_row_missing_moved_or_doubled_is_located(order: list[int], seq: int) -> None:
    rows = chain(4)
    assert verify_chain([rows[place] for place in order], KEY) == Break(
        "n1", seq, BreakReason.OUT_OF_ORDER
    )


def test_rows_of_two_nodes_make_no_chain() -> None:
    rows = [*chain(2), *chain(3, node="n2")[2:]]
    assert verify_chain(rows, KEY) == Break("n2", 3, BreakReason.OUT_OF_ORDER)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_cut_tail_and_a_restored_older_store_show_by_the_exported_head(kept: int) -> None:
    rows = chain(4)
    assert verify_chain(rows[:kept], KEY, head(rows)) == Break("n1", kept + 1, BreakReason.TAIL_CUT)


def test_a_chain_rewritten_with_the_key_shows_by_the_exported_head() -> None:
    rewritten: Chain = []
    previous = GENESIS
    for row, _ in chain(3):
        edited = replace(row, amount=1)
        rewritten.append((edited, row_hash(KEY, previous, edited)))
        previous = bytes.fromhex(rewritten[-1][1])
    assert verify_chain(rewritten, KEY, head(chain(3))) == Break("n1", 3, BreakReason.HEAD_DIFFERS)


def test_a_row_hash_wants_a_raw_digest() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        row_hash(KEY, b"", chain(1)[0][0])


def test_a_hash_is_hmac_sha256_of_the_previous_and_the_row() -> None:
    row, sealed = chain(1)[0]
    assert sealed == hmac.new(KEY, GENESIS + canonical(row), "sha256").hexdigest()


def test_the_canonical_bytes_are_sorted_json_without_nulls() -> None:
    row = AuditRow(kind="read", note="é", node="n", seq=1, time=2)
    assert canonical(row) == b'{"kind":"read","node":"n","note":"\\u00e9","seq":1,"time":2,"v":1}'
    assert row.id == "n:1"


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text('\\"/\x00\x1f\x7f\x80é\n')


@given(TEXTS, TEXTS, st.none() | TEXTS, st.none() | st.integers(0, 2**53))
def test_the_canonical_bytes_are_those_of_the_standard_library(
    path: str, note: str, agent: str | None, amount: int | None
) -> None:
    draft = AuditDraft(kind="read", path=path, note=note, agent_id=agent, amount=amount)
    row = AuditRow(node="n", seq=1, time=2, **asdict(draft))
    there = {name: value for name, value in asdict(row).items() if value is not None}
    plain = json.dumps({"v": 1, **there}, sort_keys=True, separators=(",", ":"))
    assert canonical(row) == plain.encode("ascii")


def test_a_draft_lands_in_its_row_whole() -> None:
    names = AuditDraft.__struct_fields__
    draft = AuditDraft(**{name: name for name in names})  # type: ignore[arg-type]  # marks, to see each column arrive
    row = AuditRow(node="n", seq=1, time=2, **asdict(draft))
    assert {name: getattr(row, name) for name in names} == {name: name for name in names}
    assert len(json.loads(canonical(row))) == len(names) + 4


def test_keys_are_derived_for_one_purpose_each() -> None:
    audit, seal = derive_key(b"master", "audit"), derive_key(b"master", "seal")
    assert len({audit, seal, derive_key(b"other", "audit"), b"master"}) == 4
    assert (len(audit), derive_key(b"master", "audit")) == (32, audit)


@given(st.text(), st.integers(min_value=0, max_value=50))
def test_cleaned_text_is_bounded_and_shows_itself(text: str, limit: int) -> None:
    cleaned = clean_text(text, limit)
    assert len(cleaned) <= limit
    assert cleaned.isprintable()
    assert set(cleaned) <= set(text)


def test_cleaning_takes_out_terminal_and_bidi_escapes_and_leaves_words() -> None:
    assert clean_text("a\x1b[31m\r\nb\u202e\u2028é ü", 100) == "a[31mbé ü"


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        ("|x", "'|x"),
        ("  =1", "'  =1"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("x=1", "x=1"),
        ("", ""),
        ("cus_A", "cus_A"),
    ],
)
def test_a_cell_is_never_a_formula(cell: str, shown: str) -> None:
    assert csv_cell(cell) == shown
