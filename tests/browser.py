"""A headless Chromium, driven and watched by a test."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement

from tools.chromium import ensure_programs

# No sandbox: tests may run as root. The rest keeps the browser from asking anyone but the page's server.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


class Browser:
    """One tab; what its console says is kept."""

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def open(self, url: str, *, width_px: int = 1280, height_px: int = 900, dark: bool = False) -> None:
        """Load a page in a window of this size; what the console was told before is forgotten."""
        self.driver.get("about:blank")
        self.complaints()
        self.resize(width_px, height_px)
        self.prefer(dark=dark)
        self.driver.get(url)

    def resize(self, width_px: int, height_px: int = 900) -> None:
        """Set the size of the viewport, that of a phone too."""
        metrics = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": width_px < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, *, dark: bool) -> None:
        """Be someone who likes pages dark, or light."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def one(self, selector: str) -> WebElement:
        """The first element that a CSS selector finds."""
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """What a reader sees of an element; nothing while it is hidden."""
        return self.one(selector).text

    def count(self, selector: str) -> int:
        """How many elements a CSS selector finds."""
        return len(self.driver.find_elements("css selector", selector))

    def ask(self, expression: str) -> object:
        """The value of an expression of JavaScript in the page."""
        return self.driver.execute_script(f"return {expression}")

    def overflows(self) -> bool:
        """Whether the page is wider than its window."""
        return bool(self.ask("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def complaints(self) -> list[str]:
        """What the console was told since the last call, but that a request was answered with an error status."""
        entries = [entry["message"] for entry in self.driver.get_log("browser")]
        return [entry for entry in entries if not re.search(r"the server responded with a status of \d+", entry)]


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A Chromium with an empty profile in `folder`, for the length of a `with` block."""
    programs = ensure_programs()
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs.chromium)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*_FLAGS, f"--user-data-dir={folder / 'chromium'}"):
        options.add_argument(flag)
    service = Service(str(programs.driver), env={**os.environ, **programs.environ})
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
