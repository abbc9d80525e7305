"""The pages of docs/reference/, made from what the program itself knows: no fact is written a second time.
 Each module has
one ``page()``, which returns Markdown.
"""

from functools import partial
from pathlib import Path

from . import cli, files, http, links, python, settings, words

PAGES = {"cli": cli.page, "settings": settings.page, "files": files.page, "words": words.page, "http": http.page}
PAGES["python"] = python.page
PAGES |= {name: partial(links.page, file) for file, name in links.WHOLE.items()}


def write(folder: Path) -> None:
    """Write each page that is not there as it should be."""
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        path, text = folder / f"{name}.md", page()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
