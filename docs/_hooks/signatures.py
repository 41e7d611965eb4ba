"""Mends the signatures of the reference while the site is built.

Public names in them become links, forward references too, and long series of numbers are cut.
What Python says of every generated `__init__` is dropped: the arguments of such a class are in its
own docstring. A problem is called by the class that users have, and not by what the inside of the library knows of it.
"""

import re

_GENERATED = re.compile(r"<p>\s*Initialize self\.\s+See help\(type\(self\)\) for accurate signature\.\s*</p>")
_SIGNATURE = re.compile(r'<div class="doc-signature highlight">.*?</div>', re.DOTALL)
_PUBLIC = re.compile(r'<span class="n">stochinv</span>(?:<span class="o">\.</span><span class="n">\w+</span>)+')
_FORWARD = re.compile(r'(?<=&gt;</span> )<span class="s2">"([A-Z]\w*)"</span>')
_PRIVATE = '<span class="n">_problem_base</span><span class="o">.</span><span class="n">AbstractProblem</span>'
_BASE = re.compile(r"\(<autoref[^>]*>(?:(?!</autoref>).)*AbstractProblem(?:(?!</autoref>).)*</autoref>\)")
_SERIES = re.compile(r'(?:\n +<span class="mf">[^<]+</span><span class="p">,</span>){6,}\n +')


def _link(text: str, target: str) -> str:
    return f'<autoref optional identifier="{target}">{text}</autoref>'  # mkdocs-autorefs finds the page


def _cut(series: re.Match[str]) -> str:
    numbers = series[0].replace('<span class="p">,</span>', "").split("\n")[1:-1]
    return ", ".join([*map(str.strip, numbers[:2]), "…", numbers[-1].strip()])


def _mend(signature: re.Match[str]) -> str:
    text = _SERIES.sub(_cut, signature[0].replace(_PRIVATE, '<span class="n">StochasticInverseProblem</span>'))
    linked = _PUBLIC.sub(lambda match: _link(match[0], re.sub("<.*?>", "", match[0])), text)
    return _FORWARD.sub(lambda match: _link(f'<span class="n">{match[1]}</span>', f"stochinv.{match[1]}"), linked)


def on_page_content(content: str, *, page, config, files) -> str:
    """MkDocs's hook: called with the HTML of every page."""
    del page, config, files
    return _SIGNATURE.sub(_mend, _BASE.sub("", _GENERATED.sub("", content)))
