"""Which distribution this package came from: another project on the index is called kb-mcp.

Floor: at the bottom of the commands.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

OURS = "kb-mcp-billing"
OTHER = "kb-mcp"


def other_distribution() -> tuple[str, str] | None:
    """Return what is wrong and what to do, where another distribution claims this package."""
    try:
        distribution(OTHER)
    except PackageNotFoundError:
        return None
    return (
        f"the distribution {OTHER}, which is another project, is installed here too, and its files "
        f"may stand in place of those of {OURS}",
        f"pip uninstall --yes {OTHER} && pip install --force-reinstall --no-deps {OURS}",
    )
