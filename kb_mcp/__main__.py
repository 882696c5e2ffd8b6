"""`python -m kb_mcp`: the same commands as `kb-mcp`.

Floor: the top. Stands on the commands alone.
"""

from __future__ import annotations

from kb_mcp.cli import main

if __name__ == "__main__":
    main()
