"""Makes a notebook of each guide while the site is built, so that none goes stale.

What a page shows under a Python block becomes a cell, and the text between becomes Markdown; the tests run the blocks.
Blocks that a page only shows, under the line `<!-- not run -->`, stay text.
"""

import json
import re

PAGES = (
    "getting-started.md",
    "bring-your-own.md",
    "simulators.md",
    "trust.md",
    "gallery/tomography.md",
    "gallery/mri.md",
    "gallery/darcy.md",
    "gallery/phase-retrieval.md",
)
INSTALL = """# On Colab, or wherever stochinv is not installed, remove the two signs in front.
# %pip install -q "stochinv[examples]"
"""
BLOCK = re.compile(r"^(<!-- not run -->\n)?```python\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)\n?")
LINK = re.compile(r"\[([^\]]+)\](?:\((?!https?:)[^)]*\)|\[[^\]]*\])")


def name_of(page: str) -> str:
    """Where the notebook of a page is."""
    return f"notebooks/{page.rpartition('/')[2].removesuffix('.md')}.ipynb"


def text_cell(text: str) -> dict | None:
    """A cell of Markdown, whose pictures and links within the site are left out."""
    text = LINK.sub(r"\1", PICTURE.sub("", text)).strip()
    return {"cell_type": "markdown", "metadata": {}, "source": text} if text else None


def code_cell(code: str) -> dict:
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return cell | {"source": code.strip()}


def notebook(markdown: str) -> dict:
    """The notebook of a page, in version 4.5 of the format."""
    cells, text, after = [code_cell(INSTALL)], "", 0
    for match in BLOCK.finditer(markdown):
        text += markdown[after : match.start()]
        after = match.end()
        if match[1] is not None:
            text += f"```python\n{match[2]}```\n"
            continue
        cells += [text_cell(text), code_cell(match[2])]
        text = ""
    cells = [cell for cell in (*cells, text_cell(text + markdown[after:])) if cell]
    # The page's title comes first.
    cells.insert(0, cells.pop(1))
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def on_files(files, config):
    """Adds the notebooks to the site."""
    # The tests read this file where MkDocs is not installed.
    from mkdocs.structure.files import File

    for page in PAGES:
        markdown = files.get_file_from_path(page).content_string
        content = json.dumps(notebook(markdown), indent=1, ensure_ascii=False)
        files.append(File.generated(config, name_of(page), content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links a page to its notebook, under its title."""
    source = page.file.src_uri
    if source not in PAGES:
        return markdown
    title, _, rest = markdown.partition("\n")
    link = "../" * source.count("/") + name_of(source)
    return f"{title}\n\n[Download this page as a notebook]({link}){{ download='' }}\n{rest}"
