"""Drops what Python says of every generated `__init__` while the site is built.

The arguments of such a class are in its own docstring; only the signature is wanted.
"""

import re

_GENERATED = re.compile(r"<p>\s*Initialize self\.\s+See help\(type\(self\)\) for accurate signature\.\s*</p>")


def on_page_content(content: str, *, page, config, files) -> str:
    """MkDocs's hook: called with the HTML of every page."""
    del page, config, files
    return _GENERATED.sub("", content)
