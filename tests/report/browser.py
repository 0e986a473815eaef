"""A real Chromium without a window, and what is asked of it. From Debian's packages chromium and chromium-driver; where
they are missing there is no browser, and what needs one is skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

MISSING = "needs a browser: apt-get install chromium chromium-driver"


@contextmanager
def chromium(folder: Path, *, width: int = 1280, height: int = 900, scale: float = 1.0) -> Iterator[Browser]:
    """A browser with a profile of its own in ``folder``; gone at the end."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(MISSING)
    options = Options()
    options.binary_location = program
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
        "--autoplay-policy=no-user-gesture-required", "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={folder}", f"--window-size={width},{height}", f"--force-device-scale-factor={scale}",
        "--hide-scrollbars", "--lang=en-GB",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=Service(executable_path=driver))
    try:
        chrome.get("about:blank")
        yield Browser(chrome)
    finally:
        chrome.quit()


class Browser:
    """``chrome`` is Selenium's driver, for what this class does not do."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def open(self, page: Path | str) -> None:
        """Open a file, or a URL; what was logged before is forgotten, and the page before can log no more."""
        self.chrome.get("about:blank")
        self.console()
        self.requests()
        self.chrome.get(page if isinstance(page, str) else page.resolve().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function with this body returns; ``arguments[0]`` and so on are its arguments."""
        return self.chrome.execute_script(script, *arguments)

    def emulate(self, **media: str) -> None:
        """CSS media features, such as prefers_color_scheme="dark"."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def console(self) -> list[str]:
        """What has been written to the console since the last look: errors, warnings, refusals by the policy."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """The URLs that have been asked for since the last look."""
        events = (json.loads(entry["message"])["message"] for entry in self._log("performance"))
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.chrome.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def press(self, *keys: str) -> None:
        """Keys, one after the other, to whatever has the focus."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.chrome).send_keys(key).perform()

    def picture(self, path: Path) -> None:
        """What can be seen, once nothing fades any more."""
        self.chrome.execute_async_script(
            "Promise.all(document.getAnimations().map((one) => one.finished)).then(arguments[0], arguments[0])"
        )
        self.chrome.save_screenshot(str(path))
