"""The page to play with: it holds draws for every place of the window, and shows those of the place that is chosen."""

import base64
import importlib
import io
import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SIZES = "--steps 2 --rounds 1 --batch-size 8 --train 64 --digits 2 --unseen 2 --samples 2"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    quickstart, demo = importlib.import_module("quickstart"), importlib.import_module("demo")
    problem, out = folder / "digits.stochinv", folder / "demo.html"
    quickstart.main([*SIZES.split(), "--save", str(problem), "--out", str(folder / "picture.png")])
    content = demo.main([str(problem), "--digits", "2", "--draws", "2", "--places", "3", "--out", str(out)])
    return content, out


def test_the_page_of_the_documentation_is_made_of_the_template():
    """All but its data, which take a trained problem to draw."""
    template = importlib.import_module("demo").TEMPLATE.read_text(encoding="utf-8")
    page = (ROOT / "docs" / "_static" / "demo.html").read_text(encoding="utf-8")
    before, after = template.split("__DATA__")
    assert page.startswith(before) and page.endswith(after)
    data = json.loads(page[len(before) : len(page) - len(after)])
    assert set(data) == {"sheets", "corners", "draws", "size", "window"} and len(data["sheets"]) == 5


@pytest.mark.slow
def test_a_sheet_has_a_row_for_each_place(made):
    content, _ = made
    assert content["corners"] == [0, 7, 14] and len(content["sheets"]) == 2
    read = lambda uri: imageio.imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    digit, drawn = (read(content["sheets"][0][name]) for name in ("digit", "draws"))
    assert digit.shape == (28, 28) and drawn.shape == (9 * 28, 4 * 28)
    # A window without noise is repeated by every draw: here that of the last place.
    last = drawn[8 * 28 :, :28]
    assert np.abs(last[14:, 14:].astype(int) - digit[14:, 14:].astype(int)).mean() < 10


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_arrow_keys_move_the_window(browser, made, width, scheme):
    content, out = made
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    window, asked, troubles = context.new_page(), [], []
    window.on("request", lambda request: asked.append(request.url))
    window.on("console", lambda message: troubles.append(message.text))
    window.on("pageerror", lambda error: troubles.append(str(error)))
    window.goto(out.as_uri(), wait_until="networkidle")
    shown = "[...document.querySelectorAll('#draws canvas')].map(x => x.toDataURL())"
    place = "document.body.dataset.place"
    assert window.evaluate(place) == "4"
    before = window.evaluate(shown)
    assert len(before) == content["draws"] + 2
    window.focus("#board")
    window.keyboard.press("ArrowRight")
    window.keyboard.press("ArrowUp")
    after = window.evaluate(shown)
    assert window.evaluate(place) == "2" and after != before
    window.click("text=digit 2")
    assert window.evaluate(shown) != after
    window.mouse.click(*window.evaluate("(b => [b.left + 3, b.bottom - 3])(board.getBoundingClientRect())"))
    assert window.evaluate(place) == "6"
    wide = window.evaluate("document.documentElement.scrollWidth")
    window.screenshot(path=out.with_name(f"demo-{width}-{scheme}.png"))
    context.close()
    assert wide <= width and not troubles
    assert [url for url in asked if not url.startswith("data:")] == [out.as_uri()]
