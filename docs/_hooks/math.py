"""Turns the site's formulas into MathML while it is built.

Every browser of today displays MathML by itself, so that a reader's browser runs no
script for them; their font is one of the site's own. `pymdownx.arithmatex` finds the formulas, in pages
and docstrings; a formula that cannot be converted fails the build.
"""

import html
import re
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\s*'
    r"\\[(\[](?P<latex>.*?)\\[)\]]\s*</(?P=tag)>",
    re.DOTALL,
)
_NAMESPACE = ' xmlns="http://www.w3.org/1998/Math/MathML"'  # HTML does without
_NAME = re.compile(r"[A-Za-z]{2,}")  # of a function: log, Var


def to_mathml(latex: str, *, display: bool) -> str:
    """The MathML of one LaTeX formula; `ValueError` if some of it is not known."""
    if latex.count("{") != latex.count("}"):
        raise ValueError("its braces do not match")
    mathml = convert(latex, display="block" if display else "inline")
    try:
        root = ElementTree.fromstring(mathml.replace(_NAMESPACE, ""))
    except ElementTree.ParseError as e:
        raise ValueError(f"it converts to malformed MathML, {e}") from e
    for element in root.iter():
        _polish(element)
    return ElementTree.tostring(root, encoding="unicode")


def _polish(element: ElementTree.Element) -> None:
    """Mends, in place, what browsers would space or size badly."""
    match element.tag, element.text or "":
        case _, text if re.match(r"\\[A-Za-z]", text):
            raise ValueError(f"the command `{text}` is not known")
        case "mo", text if _NAME.fullmatch(text):
            element.tag = "mi"
        case "mi", "~":  # \sim
            element.tag, element.text = "mo", "∼"
        case "mi", ";":
            element.tag = "mo"
        case "mo", "/":
            element.attrib |= {"lspace": "0", "rspace": "0"}
        case "msup", _ if element[1].text in ("′", "″"):
            # A text font's prime is small and raised already; see style.css.
            element.tag, element[1].tag = "mrow", "mtext"
            element[1].set("class", "prime")
    for name, follower in reversed(list(zip(element, element[1:], strict=False))):
        is_name = name.tag in ("mi", "mo") and _NAME.fullmatch(name.text or "")
        if is_name and follower.tag not in ("mo", "mspace"):
            space = ElementTree.Element("mspace", width="0.167em")
            element.insert(list(element).index(follower), space)


def on_page_content(content: str, *, page, config, files) -> str:
    """MkDocs's hook: called with the HTML of every page."""
    del config, files

    def replace(match: re.Match[str]) -> str:
        latex = html.unescape(match["latex"]).strip()
        try:
            mathml = to_mathml(latex, display=match["tag"] == "div")
        except Exception as e:
            raise PluginError(f"{page.file.src_uri}: formula `{latex}`: {e}") from e
        return f'<{match["tag"]} class="math">{mathml}</{match["tag"]}>'

    converted = _FORMULA.sub(replace, content)
    if 'class="arithmatex"' in converted:
        raise PluginError(f"{page.file.src_uri}: a formula was left unconverted")
    return converted
