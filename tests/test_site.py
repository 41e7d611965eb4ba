"""The built site, as a reader's browser shows it: desktop and phone, light and dark.

The site is built and served on loopback. `STOCHINV_SITE` names the folder of one that is built already,
`STOCHINV_CHROMIUM` another browser than the `chromium` of the path, and `STOCHINV_SCREENSHOTS` a folder for a picture
of every page.
"""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    re.sub(r"(^|/)index$", "", path.relative_to(ROOT / "docs").with_suffix("").as_posix())
    for path in (ROOT / "docs").rglob("*.md")
)
WIDTHS = {"desktop": 1280, "phone": 390}
# Elements of the text that stick out of the window, unless something around them scrolls; formulas that take no room
# or are not laid out as such; pictures that do not show or say nothing to who cannot see them; delimiters of formulas.
FAULTS = """async () => {
  const faults = []
  const article = document.querySelector("article")
  const width = document.documentElement.clientWidth
  const overflow = (e) => getComputedStyle(e).overflowX
  const scrolls = (e) => e !== article && (/auto|scroll/.test(overflow(e)) || scrolls(e.parentElement))
  const name = (e) => e.outerHTML.slice(0, 120)

  article.querySelectorAll("details").forEach((e) => (e.open = true))
  if (document.documentElement.scrollWidth > width) faults.push(`the page is wider than ${width} px`)
  for (const e of article.querySelectorAll("*")) {
    const box = e.getBoundingClientRect()
    if (box.width > 1 && (box.right > width + 1 || box.left < -1) && e.checkVisibility() && !scrolls(e))
      faults.push(`sticks out: ${name(e)}`)
  }
  for (const e of article.querySelectorAll("math")) {
    const box = e.getBoundingClientRect()
    if (box.width <= 0 || box.height <= 0 || !getComputedStyle(e).display.includes("math"))
      faults.push(`is not typeset: ${name(e)}`)
  }
  for (const e of article.querySelectorAll("img")) {
    await e.decode().catch(() => faults.push(`does not show: ${name(e)}`))
    if (!e.alt) faults.push(`says nothing: ${name(e)}`)
  }
  const prose = article.cloneNode(true)
  prose.querySelectorAll("pre, code, math").forEach((e) => e.remove())
  for (const raw of prose.textContent.match(/.{0,40}(\\$|\\\\[([]).{0,40}/g) ?? []) faults.push(`was left raw: ${raw}`)
  return faults
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if folder := os.environ.get("STOCHINV_SITE"):
        return Path(folder)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert build.returncode == 0, f"{build.stdout}\n{build.stderr}"
    return folder


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(QuietHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def open_page(browser, address):
    """Opens a page of the site in a window of its own; in the end, nothing may have gone wrong in any."""
    troubles, contexts = [], []

    def route(route):
        if route.request.url.startswith(address):
            route.continue_()
        else:
            troubles.append(f"another host is asked: {route.request.url}")
            route.abort()

    def open_page(page, width, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.route("**/*", route)
        window = context.new_page()
        window.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type == "error" else None)
        window.on("pageerror", lambda error: troubles.append(f"script: {error}"))
        window.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}, {request.failure}"))
        window.on("response", lambda r: troubles.append(f"status {r.status}: {r.url}") if r.status >= 400 else None)
        window.goto(urljoin(address, f"{page}/" if page else ""), wait_until="networkidle")
        return window

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles, "\n".join(dict.fromkeys(troubles))


def scheme(window):
    return window.locator("body").get_attribute("data-md-color-scheme")


def luminance(window):
    """Of the page's background, between 0 and 1."""
    colour = window.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [float(channel) for channel in re.findall(r"[0-9.]+", colour)[:3]]
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), channels, strict=True)) / 255


def take_screenshot(window, name, full_page=True):
    if folder := os.environ.get("STOCHINV_SCREENSHOTS"):
        window.screenshot(path=Path(folder) / f"{name}.png", full_page=full_page)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page or "home")
def test_page(page, width, open_page):
    window = open_page(page, width)
    name = f"{page.replace('/', '-') or 'home'}-{width}"
    assert scheme(window) == "default" and luminance(window) > 0.8
    faults = window.evaluate(FAULTS)
    take_screenshot(window, f"{name}-light")
    window.locator("[data-md-component=palette] label:visible").click()
    window.wait_for_function("document.body.dataset.mdColorScheme === 'slate'")
    assert luminance(window) < 0.2
    faults += window.evaluate(FAULTS)
    take_screenshot(window, f"{name}-dark")
    assert not faults, "\n".join(dict.fromkeys(faults))


def test_formulas_are_there(open_page):
    window = open_page("theory", WIDTHS["desktop"])
    assert window.locator("article math[display=block]").count() > 10
    # An exponent is small and raised, not beside its base as text would be.
    base, exponent = window.locator("article msup").first.locator("> *").all()
    base, exponent = base.bounding_box(), exponent.bounding_box()
    assert exponent["height"] < base["height"] + 1 and exponent["y"] < base["y"] + 1


def test_reader_who_prefers_dark_gets_dark(open_page):
    assert scheme(open_page("", WIDTHS["desktop"], scheme="dark")) == "slate"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_search(width, open_page):
    window = open_page("", width)
    field = window.locator(".md-search__input")
    button = window.locator(".md-header__button[for=__search]")
    (button if button.is_visible() else field).click()
    field.press_sequentially("StochasticInverseProblem")
    links = ".md-search-result__link[href*='/api/problem/'][href$='#stochinv.StochasticInverseProblem']"
    result = window.locator(links).first
    result.wait_for()
    take_screenshot(window, f"search-{width}", full_page=False)
    result.click()
    window.wait_for_url("**/api/problem/**")
    window.locator("[id='stochinv.StochasticInverseProblem']").wait_for()
    window.wait_for_load_state("networkidle")


class Links(HTMLParser):
    """What an HTML file links to, and the anchors it has."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [attributes[key] for key in ("href", "src") if attributes.get(key)]
        self.anchors |= {attributes[key] for key in ("id", "name") if attributes.get(key)}


def test_links(site):
    files = {path.relative_to(site).as_posix(): Links(path) for path in site.rglob("*.html")}
    base = "https://site.invalid/"
    broken = []
    for file, parsed in files.items():
        for link in parsed.links:
            url = urlsplit(urljoin(base + file, link))
            target = unquote(url.path).lstrip("/")
            if url.netloc != "site.invalid":
                fine = url.scheme == "https" and "." in url.netloc
            else:
                target += "index.html" * (not target or target.endswith("/"))
                anchors = files[target].anchors if target in files else set()
                fragment = unquote(url.fragment)
                fine = (site / target).is_file() and (not fragment or fragment in anchors)
            if not fine:
                broken.append(f"{file}: {link}")
    assert len(files) > len(PAGES) and not broken, "\n".join(broken)
