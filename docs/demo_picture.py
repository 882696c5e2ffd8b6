"""Runs the demo and draws what it printed: docs/pictures/demo-light.svg and demo-dark.svg.

    python docs/demo_picture.py

The numbers in the picture are those of this run.
"""

from __future__ import annotations

import inspect
import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kb_mcp.demo.scenarios import run_demo

FOLDER = Path(__file__).parent / "pictures"
# A page of the repository fetches nothing: the reader's own monospace font is used.
_RICHS: str = inspect.signature(Console.export_svg).parameters["code_format"].default
FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", _RICHS, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
)
_NORMAL = [(0, 0, 0), (190, 40, 40), (25, 120, 50), (150, 110, 0), (30, 80, 180)]
_BRIGHT = [(0, 0, 0), (255, 120, 110), (110, 215, 130), (230, 190, 80), (120, 170, 255)]
_REST = [(120, 60, 160), (0, 120, 130), (128, 128, 128)]
LIGHT = TerminalTheme((252, 252, 253), (36, 41, 47), _NORMAL + _REST, None)
DARK = TerminalTheme((22, 27, 34), (220, 226, 232), _BRIGHT + _REST, None)


def main() -> int:
    """Draw the run in both themes; returns the demo's exit code."""
    console = Console(record=True, force_terminal=True, width=112, file=io.StringIO())
    code = run_demo(console)
    if code == 0:
        FOLDER.mkdir(exist_ok=True)
        for name, theme in (("light", LIGHT), ("dark", DARK)):
            svg = console.export_svg(
                title="make demo", theme=theme, clear=False, code_format=FORMAT, unique_id="demo"
            )
            (FOLDER / f"demo-{name}.svg").write_text(svg, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
