"""What a shell may complete: roles, codes, and the ids of keys in an embedded store.

Floor: at the bottom of the commands. Completing never fails aloud, waits for no network and
changes nothing: what cannot be read at once is not offered.
"""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

IDS_MAX = 100


def roles(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the built-in roles, each with what it may do."""
    from kb_mcp.proxy.access.roles import ROLES, describe

    return [
        CompletionItem(name, help=describe(policy)[0])
        for name, policy in ROLES.items()
        if name.startswith(incomplete)
    ]


def codes(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the codes of our refusals."""
    from kb_mcp.proxy.errors.refusal_codes import Code

    return [CompletionItem(code.value) for code in Code if code.value.startswith(incomplete)]


def key_ids(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the keys of an embedded store, the newest first, each with its role and label."""
    from kb_mcp.environment import SettingsError
    from kb_mcp.proxy.audit.chain import clean_text
    from kb_mcp.settings import load_settings
    from kb_mcp.wiring.opening import keys_in

    try:
        found = keys_in(load_settings())
    except SettingsError:
        return []
    return [
        CompletionItem(key.id, help=clean_text(f"{key.role} {key.label or ''}".strip(), 60))
        for key in reversed(found)
        if key.id.startswith(incomplete)
    ][:IDS_MAX]
