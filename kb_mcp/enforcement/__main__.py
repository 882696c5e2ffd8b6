"""`python -m kb_mcp.enforcement`: the same as `pytest --pyargs kb_mcp.enforcement`.

Floor: the top.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the suite with the options of the command line; return pytest's exit code."""
    try:
        import pytest
    except ImportError:
        hint = "Error: pytest is not installed\nHint: pip install 'kb-mcp-billing[enforcement]'\n"
        sys.stderr.write(hint)
        return 2
    return int(pytest.main(["--pyargs", "kb_mcp.enforcement", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
