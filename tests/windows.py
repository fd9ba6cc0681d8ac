"""Windows of a browser, as tests of the page use them, and what they show."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server import SECRET

from darkpearl.api import tokens
from darkpearl.config import Settings

if TYPE_CHECKING:
    from playwright.async_api import Page

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
STEADY_SECONDS = 20.0
"""Longer than a screen takes to come on a busy machine."""


def token(role: tokens.Role = "service_role", subject: str = "ada", seconds: int = 600) -> str:
    """A token of the API."""
    return tokens.mint(Settings(jwt_secret=SECRET), role, subject, seconds)


class Window:
    """A window of the browser, and what went wrong in it."""

    def __init__(self, page: "Page", address: str) -> None:
        self.page = page
        self.address = address
        self.console: list[str] = []
        self.elsewhere: list[str] = []
        page.on("console", lambda said: self.console.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        if urlsplit(url).netloc != urlsplit(self.address).netloc and not url.startswith("data:"):
            self.elsewhere.append(url)

    async def sign_in(self, path: str = "", role: tokens.Role = "service_role") -> "Window":
        """Open a screen, with a token typed into the form; returns itself."""
        await self.page.goto(f"{self.address}/monitor{path}")
        await self.page.fill("#token", token(role))
        await self.page.click("#token-form button")
        return await self.settled()

    async def open(self, path: str) -> "Window":
        """Go to another screen of the tab that has signed in, as a link does; returns itself."""
        await self.page.evaluate(
            "path => { history.pushState(null, '', path);"
            " dispatchEvent(new PopStateEvent('popstate')) }",
            f"/monitor{path}",
        )
        return await self.settled(f'[hx-sse\\:connect="/monitor/live{path}"]')

    async def settled(self, which: str = "") -> "Window":
        """Wait until the screen has come; returns itself."""
        await self.page.wait_for_selector(f"#screen{which} h1")
        return self

    async def text(self, selector: str = "#screen") -> str:
        """What stands there, for people."""
        return await self.page.inner_text(selector)

    async def photograph(self, name: str) -> None:
        """Keep what is seen, all of the page's length."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    async def violations(self, *rules: str) -> list[str]:
        """What axe has against it, by some of its rules or by all."""
        from axe_playwright_python.async_playwright import Axe  # noqa: PLC0415 - a browser's

        said = list(self.console)
        found = await Axe().run(self.page, options={"runOnly": list(rules)} if rules else {})
        self.console[:] = said  # axe styles what it measures, and is told that it may not
        return [
            f"{each['id']}: {node['html'][:200]}"
            for each in found.response["violations"]
            for node in each["nodes"]
        ]
