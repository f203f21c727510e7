"""Every page of the dashboard in a real Chromium: sound in both widths and colours, and doing what its buttons say.

Takes one JSON object: url, token, reader, link, external_id, invalid; and, to keep screenshots, the folder for them in the
environment as VINCULO_SCREENSHOTS. Gives a line for each thing that was looked at; ends with 1 at the first that is wrong.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

WIDTHS = {360: 800, 1280: 800}
SCHEMES = ("light", "dark")
GRAVE = ("serious", "critical")
# Those that are kept as pictures, and how much of them.
KEPT = ("overview", "links", "link", "runs", "webhooks", "schedule", "errors", "data", "developer")
TALLEST = 1600


class Eyes:
    """Looks over the shoulder of every page of a context."""

    def __init__(self, context, home: str):
        self.wrong: list[str] = []
        self.host = urlsplit(home).netloc
        context.on("console", lambda message: message.type == "error" and self.note("console", message.text))
        context.on("weberror", lambda error: self.note("error", str(error.error)))
        context.on("request", self.see_request)

    def note(self, kind: str, text: str):
        self.wrong.append(f"{kind}: {text}")

    def see_request(self, request):
        if urlsplit(request.url).netloc != self.host:
            self.note("request to another host", request.url)

    def check(self, where: str):
        assert not self.wrong, f"{where}: {self.wrong}"


def sign_in(page: Page, told: dict, token: str):
    page.goto(told["url"] + "/")
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    expect(page.locator("#health")).to_be_visible()


def pages(told: dict) -> dict[str, str]:
    return {
        "overview": "/",
        "links": "/links",
        "links-found-none": "/links?q=nobody-has-this-id",
        "link": f"/links/{told['link']}",
        "link-that-needs-its-user": f"/links/{told['invalid']}",
        "runs": "/runs",
        "run": "/runs/1",
        "webhooks": "/webhooks",
        "quarantine": "/webhooks?outcome=quarantined",
        "webhook": "/webhooks/1",
        "schedule": "/schedule",
        "errors": "/errors",
        "data": "/data",
        "table": "/data/salaries",
        "developer": "/developer",
        "missing": "/links/none",
    }


def look(page: Page, eyes: Eyes, axe: Axe, where: str, width: int):
    needed = page.evaluate("document.documentElement.scrollWidth")
    assert needed <= width, f"{where} is {needed} px wide"
    found = axe.run(page).response["violations"]
    grave = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in GRAVE]
    assert not grave, f"{where}: axe: {grave}"
    eyes.check(where)


def every_page(browser, told: dict, axe: Axe, folder: Path | None):
    for width, height in WIDTHS.items():
        for scheme in SCHEMES:
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, locale="en-US")
            eyes, page = Eyes(context, told["url"]), context.new_page()
            page.goto(told["url"] + "/sign-in")
            look(page, eyes, axe, f"sign-in {width} {scheme}", width)
            sign_in(page, told, told["token"])
            seen = []
            for name, path in pages(told).items():
                missing = name == "missing"
                answer = page.goto(told["url"] + path)
                assert answer.status == (404 if missing else 200), f"{path}: {answer.status}"
                # The browser itself says on the console that a page was answered 404.
                eyes.wrong = [one for one in eyes.wrong if not (missing and "404" in one)]
                where = f"{name} {width} {scheme}"
                look(page, eyes, axe, where, width)
                ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
                is_dark = sum(int(part) for part in ground.strip("rgb()").split(",")[:3]) < 384
                assert is_dark == (scheme == "dark"), f"{where}: the ground is {ground}"
                if folder and name in KEPT:
                    keep(page, folder / f"{name}-{width}-{scheme}.png", width)
                seen.append(name)
            print(f"{len(seen) + 1} pages at {width} px in {scheme}: sound")
            context.close()


def keep(page: Page, picture: Path, width: int):
    height = page.evaluate("document.documentElement.scrollHeight")
    page.screenshot(path=picture, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": min(height, TALLEST)})


def finds_a_link_and_refreshes_it(page: Page, told: dict):
    page.get_by_role("link", name="Links", exact=True).first.click()
    page.get_by_label("Link id or external id").fill(told["external_id"])
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Link {told['link']}")
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("refresh")
    # The page shows itself anew until the run has ended.
    expect(page.locator("#outcome")).to_have_text("done", timeout=30_000)
    expect(page.locator("dl.facts")).to_contain_text("2 / 2")
    print("a link was found by its external id, and its refresh was seen to finish")


def replays_the_quarantine(page: Page):
    page.get_by_role("link", name="Webhooks", exact=True).first.click()
    page.get_by_role("link", name="in quarantine").click()
    page.get_by_role("link", name="PLANETS").click()
    expect(page.locator("#outcome")).to_have_text("in quarantine")
    webhook = page.url
    page.get_by_role("button", name="Replay").click()
    expect(page.locator("#outcome")).to_have_text("done", timeout=30_000)
    page.goto(webhook)
    expect(page.locator("#outcome")).to_have_text("led to a fetch")
    page.goto(urlsplit(webhook)._replace(path="/", query="").geturl())
    expect(page.locator(".checks")).to_contain_text("every one was understood")
    print("a webhook of the quarantine was replayed and understood")


def pauses_and_makes_a_widget(page: Page, told: dict):
    page.goto(f"{told['url']}/links/{told['link']}")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("paused", exact=True)).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.get_by_role("button", name="Widget URL").click()
    expect(page.get_by_label("URL", exact=True)).to_have_value(re.compile(r"^https?://.+access_token=.+"))
    print("a link was paused, resumed and given a widget URL")


def plays_with_the_simulator(page: Page, told: dict):
    page.goto(told["url"] + "/developer")
    page.get_by_label("From now on").select_option(label="Belvo asks for patience once (429)")
    page.get_by_role("button", name="Let it happen").click()
    expect(page.locator("pre")).to_contain_text("429")
    page.get_by_label("From now on").select_option(label="all goes well again")
    page.get_by_role("button", name="Let it happen").click()
    expect(page.locator("pre")).not_to_contain_text("429")
    page.get_by_label("Link", exact=True).select_option(index=0)
    page.get_by_label("It says").select_option(label="new owners")
    page.get_by_role("button", name="Fire").click()
    expect(page.get_by_role("link", name="OWNERS · new_owners_available").first).to_be_visible(timeout=30_000)
    print("a scenario was chosen, and a webhook fired and seen to arrive")


def speaks_portuguese_by_keyboard(page: Page, told: dict):
    page.goto(told["url"] + "/")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    switch = page.get_by_role("link", name="Português")
    switch.focus()
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("lang", "pt-BR")
    expect(page.get_by_role("heading", level=1)).to_have_text("Visão geral")
    for place, heading in {"/runs": "Execuções", "/schedule": "Agenda", "/errors": "Erros", "/data": "Dados"}.items():
        page.goto(told["url"] + place)
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    page.get_by_role("link", name="English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    print("the language was switched by keyboard")


def a_reader_only_reads(browser, told: dict):
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    sign_in(page, told, told["reader"])
    expect(page.get_by_text("read only")).to_be_visible()
    page.goto(f"{told['url']}/links/{told['link']}")
    expect(page.get_by_role("button", name="Refresh")).to_have_count(0)
    context.close()
    print("a reader sees no button")


def main() -> int:
    told = json.loads(sys.argv[1])
    kept = os.environ.get("VINCULO_SCREENSHOTS")
    folder = Path(kept) if kept else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "there is no chromium: scripts/system-packages.sh chromium:chromium installs it"
    with sync_playwright() as playwright:
        # Tests run as root in containers, where Chromium's own sandbox cannot.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        context = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 800})
        eyes, page = Eyes(context, told["url"]), context.new_page()
        sign_in(page, told, told["token"])
        # This is the first run; the quarantine is still to be seen on the pages.
        finds_a_link_and_refreshes_it(page, told)
        every_page(browser, told, Axe(), folder)
        replays_the_quarantine(page)
        speaks_portuguese_by_keyboard(page, told)
        pauses_and_makes_a_widget(page, told)
        plays_with_the_simulator(page, told)
        eyes.check("clicking")
        a_reader_only_reads(browser, told)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
