"""A real browser, driven for a test: Debian's Chromium without a window."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import until

AXE = Path(__file__).with_name("axe") / "axe.min.js"
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
)
_SERIOUS = ("serious", "critical")


class Browser:
    """One window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, height: int = 900, colours: str = "light") -> None:
        """Show a page in a window of this size, as a fresh visitor."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
        media = {"features": [{"name": "prefers-color-scheme", "value": colours}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get("about:blank")
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function body in JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def text(self, css: str) -> str:
        """Return what a person reads in the first element that fits, or nothing."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", css)).replace("\xa0", " ")

    def texts(self, css: str) -> list[str]:
        """Return the same of all that fit."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)", css
        )
        return [text.replace("\xa0", " ") for text in found]

    def sees(self, css: str, words: str) -> None:
        """Wait until an element that fits says these words."""
        until(lambda: any(words in text for text in self.texts(css)), f"{css} says {words!r}")

    def is_shown(self, css: str) -> bool:
        """Whether an element that fits takes a place on the page."""
        return bool(
            self.run("return [...document.querySelectorAll(arguments[0])].some((one) => one.checkVisibility())", css)
        )

    def press(self, words: str, within: str = "body") -> None:
        """Wait for a button of this name that can be seen, and click it."""
        script = """return [...document.querySelectorAll(arguments[0] + " button")].find((one) => one.checkVisibility()
            && [one.innerText.trim(), one.getAttribute("aria-label")].includes(arguments[1]))"""
        found = until(lambda: self.run(script, within, words), f"a button {words!r} in {within}")
        self.run("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def write(self, css: str, words: str) -> None:
        """Replace the text of a field, as by hand."""
        found = until(lambda: self.run("return document.querySelector(arguments[0])", css), css)
        found.clear()
        found.send_keys(words)

    def keys(self, *keys: str) -> None:
        """Type into whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def complaints(self) -> list[str]:
        """Return what is on the console since the last look: errors of scripts, of the policy, of loading."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]

    def barriers(self) -> list[str]:
        """Return what axe finds that keeps people out: its serious and critical faults."""
        self.run(AXE.read_text())
        found = self.driver.execute_async_script(
            "axe.run(document, {resultTypes: ['violations']}).then(arguments[arguments.length - 1])"
        )
        return [
            f"{fault['id']}: {fault['help']}: {node['html'][:200]}"
            for fault in found["violations"]
            if fault["impact"] in _SERIOUS
            for node in fault["nodes"]
        ]

    def picture(self, path: Path) -> None:
        """Keep a picture of the whole page."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 6000), "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser, gone at the end; where none is installed the test is left out, but not in CI."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "needs chromium and chromedriver (Debian: chromium-driver)"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for option in _OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
