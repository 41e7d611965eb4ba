"""A report in a browser, which opens it as a file: at desktop and phone width, light and dark."""

import re

import pytest

from test_report import made
from test_site import luminance, take_screenshot

pytestmark = pytest.mark.browser

WIDTHS = (390, 1400)
# What sticks out of the window unless something around it scrolls, and pictures that do not show or say nothing.
FAULTS = """async () => {
  const faults = [], width = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth > width) faults.push(`the page is wider than ${width} px`)
  for (const e of document.querySelectorAll("main > *, p, h1, h2, img"))
    if (e.getBoundingClientRect().right > width + 1) faults.push(`sticks out: ${e.outerHTML.slice(0, 80)}`)
  for (const e of document.querySelectorAll("img")) {
    await e.decode().catch(() => faults.push("a picture does not show"))
    if (!e.alt) faults.push("a picture says nothing")
  }
  return faults
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    made(known=True, width=1.2, records=40, strange=20).save(path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_opens_and_asks_for_nothing(browser, page, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    window, asked, troubles = context.new_page(), [], []
    window.on("request", lambda request: asked.append(request.url))
    window.on("console", lambda message: troubles.append(message.text))
    window.on("pageerror", lambda error: troubles.append(str(error)))
    window.goto(page.as_uri(), wait_until="networkidle")
    shown = window.evaluate("[...document.images].map(x => x.currentSrc)")
    faults = window.evaluate(FAULTS)
    bright = luminance(window)
    take_screenshot(window, f"report-{width}-{scheme}")
    context.close()
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert not faults and not troubles
    assert bright > 0.8 if scheme == "light" else bright < 0.2
    # The pictures are those of the scheme.
    pictures = re.findall(r'srcset="([^"]+)"><img src="([^"]+)"', page.read_text(encoding="utf-8"))
    assert shown == [dark if scheme == "dark" else light for dark, light in pictures] and len(shown) == 3
