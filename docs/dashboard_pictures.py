"""Draws the dashboard for the docs: pictures of real pages over the story that the tests tell.

    python docs/dashboard_pictures.py

It needs Chromium, and the tools of `make dev`. The numbers are those of this run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import sync_playwright

from tests.browser.conftest import CHROMIUM, FLAGS, serving
from tests.browser.months_of_billing import Billing
from tests.in_process_proxy import InProcessProxy

FOLDER = Path(__file__).parent / "pictures"
DESK, PHONE = {"width": 1280, "height": 1080}, {"width": 390, "height": 844}


def main() -> None:
    """Draw the overview in both themes and on a phone, and the page of an operation."""
    with tempfile.TemporaryDirectory() as folder, InProcessProxy(Path(folder)) as in_process:
        billing = Billing(in_process)
        operation = billing.tell()
        with serving(in_process) as store_admin, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            for name, scheme, size, path in (
                ("overview-light", "light", DESK, "/"),
                ("overview-dark", "dark", DESK, "/"),
                ("overview-phone", "light", PHONE, "/"),
                ("operation", "light", {**DESK, "height": 820}, f"/operations/{operation}"),
            ):
                context = browser.new_context(color_scheme=scheme, viewport=size)
                page = context.new_page()
                store_admin.enter(page, path)
                page.screenshot(path=str(FOLDER / f"{name}.png"))
                context.close()
            browser.close()


if __name__ == "__main__":
    main()
