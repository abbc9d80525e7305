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
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service

from tests.conftest import END_S

AXE = Path(__file__).with_name("axe") / "axe.min.js"
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
)
_SEEN = "const isSeen = (one) => one.checkVisibility({visibilityProperty: true});"
_WAIT = (
    _SEEN
    + """const given = [...arguments], done = given.pop();
const look = () => { const found = LOOK; if (found) { clearInterval(looking); done(found); } };
const looking = setInterval(look, 30);
look();"""
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
        look = "[...document.querySelectorAll(given[0])].some((one) => one.innerText.replaceAll('\\xa0', ' ').includes(given[1]))"
        self.wait(f"{css} says {words!r}", look, css, words)

    def wait(self, what: str, look: str, *given: Any) -> Any:
        """Return what an expression in JavaScript is as soon as that is true; the browser itself looks, often."""
        try:
            return self.driver.execute_async_script(_WAIT.replace("LOOK", look), *given)
        except TimeoutException:
            pytest.fail(f"{what}: not within {END_S:g} s; the page says:\n{self.text('body')[:3000]}")

    def gone(self, css: str) -> None:
        """Wait until no element that fits can be seen."""
        self.wait(f"{css} is gone", "![...document.querySelectorAll(given[0])].some(isSeen)", css)

    def is_shown(self, css: str) -> bool:
        """Whether an element that fits can be seen."""
        return bool(self.run(_SEEN + "return [...document.querySelectorAll(arguments[0])].some(isSeen)", css))

    def press(self, words: str, within: str = "body") -> None:
        """Wait for a button of this name that can be seen, and click it."""
        look = """[...document.querySelectorAll(given[0] + " button")].find((one) => isSeen(one)
            && [one.innerText.trim(), one.getAttribute("aria-label")].includes(given[1]))"""
        found = self.wait(f"a button {words!r} in {within}", look, within, words)
        self.run("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def write(self, css: str, words: str) -> None:
        """Replace the text of a field, as by hand."""
        found = self.wait(css, "document.querySelector(given[0])", css)
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
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for option in _OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
    driver.set_script_timeout(END_S)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
