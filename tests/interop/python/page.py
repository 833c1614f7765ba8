"""Drives the page in headless Chromium: page.py URL CHROMIUM.

It prints a line of JSON after each step, and waits for a line on standard input before it goes on.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

WAIT_MS = 60_000


def told(**found: Any) -> None:
    """Reports a step, and waits until the test has done its part."""
    print(json.dumps(found), flush=True)
    sys.stdin.readline()


def say(page: Page, text: str) -> None:
    """Sends a message with the keyboard."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def wait(condition: Callable[[], bool]) -> None:
    """Waits for a condition. The page forbids what playwright's own function for that does in it."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the page did not change")
        time.sleep(0.1)


def drive(page: Page) -> None:
    """All steps."""
    answer = page.locator(".message.assistant .body").last
    pixels = "document.getElementById('map').toDataURL()"
    expect(page.locator("#model")).to_have_text("demo", timeout=WAIT_MS)
    page.click("#open-settings")
    page.fill("[name=temperature]", "0.9")
    page.fill("[name=max_tokens]", "1500")
    page.fill("[name=seed]", "5")
    page.click("dialog .primary")
    say(page, "It was a fine morning")
    wait(lambda: len(answer.inner_text()) > 200)
    early, map_early = answer.inner_text(), page.evaluate(pixels)
    wait(lambda: len(answer.inner_text()) > len(early) + 200 and page.evaluate(pixels) != map_early)
    told(step="streaming", grew=answer.inner_text().startswith(early[:100]), map=page.inner_text("#map-text"))

    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()
    told(step="stopped", facts=page.inner_text(".facts"))

    before = answer.inner_text()
    page.reload()
    page.click("#open-settings")
    kept = [page.input_value(f"[name={name}]") for name in ("temperature", "max_tokens", "seed")]
    page.fill("[name=max_tokens]", "8")
    page.keyboard.press("Escape")
    told(step="reloaded", kept=kept, conversation=answer.inner_text() == before)

    expect(page.locator("#banner")).to_be_visible(timeout=WAIT_MS)
    say(page, "Are you there?")
    expect(page.locator(".error").last).to_be_visible(timeout=WAIT_MS)
    told(step="away", banner=page.inner_text("#banner"), error=page.locator(".error").last.inner_text())

    expect(page.locator("#banner")).to_be_hidden(timeout=WAIT_MS)
    page.locator(".facts button", has_text="Try again").last.click()
    expect(page.locator(".facts").last).to_contain_text("8 tokens", timeout=WAIT_MS)
    expect(page.locator(".error")).to_have_count(0)
    told(step="back")


def main() -> None:
    """Opens the page and drives it."""
    url, chromium = sys.argv[1:]
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--no-proxy-server"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        asked: list[str] = []
        problems: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        drive(page)
        told(step="end", elsewhere=[each for each in asked if not each.startswith(url)], problems=problems)
        browser.close()


if __name__ == "__main__":
    main()
