"""How the documents are built: ``make docs``, with warnings as errors. What is made from the source is made first."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import makers  # noqa: E402
from dspy_supervisor import __version__  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

project = "dspy-supervisor"
author = "the authors of dspy-supervisor"
release = version = __version__

extensions = ["myst_parser"]
smartquotes = False  # an option keeps its two dashes
exclude_patterns = ["examples", "demo", "makers"]
html_theme = "furo"
html_title = f"dspy-supervisor {version}"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["pages.css"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nitpicky = True

makers.write(HERE / "reference")


def setup(app: Sphinx) -> None:
    """Let links to files beside docs/ lead to their pages."""

    def read(_: Sphinx, name: str, source: list[str]) -> None:
        path = HERE / f"{name}.md"
        if path.parent.name != "reference":
            source[0] = makers.links.rewritten(source[0], path.parent)

    app.connect("source-read", read)
