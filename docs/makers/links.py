"""Links between the files of the repository, as they are in the built documents.

Files that lie beside docs/ and belong to the documents are pages of reference/; links to other files of the repository
become their text, since the built documents have no repository beside them.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: file of the repository: its page below docs/reference
WHOLE = {
    "README.md": "readme",
    "CHANGELOG.md": "changelog",
    "SECURITY.md": "policy",
    "CONTRIBUTING.md": "contributing",
    "bench/README.md": "bench",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def page(file: str) -> str:
    """Return a whole file of the repository as a page."""
    return rewritten((ROOT / file).read_text(), (ROOT / file).parent)


def rewritten(text: str, folder: Path) -> str:
    """Return Markdown that lay in a folder of the repository with its links as the built documents need them."""
    parts = re.split(rf"({_FENCED.pattern})", text, flags=_FENCED.flags)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda found: _link(found, folder), part) for part in parts
    )


def _link(found: re.Match[str], folder: Path) -> str:
    image, text, target, anchor = found[1], found[2], found[3], found[4] or ""
    if re.match(r"[a-z]+:|<|/", target):
        return found[0]
    place = (folder / target).resolve()
    name = str(place.relative_to(ROOT)) if place.is_relative_to(ROOT) else ""
    if name in WHOLE:
        return f"[{text}](/reference/{WHOLE[name]}.md{anchor})"
    if name.startswith("docs/") and (image or (name.endswith(".md") and not place.is_dir())):
        return f"{image}[{text}](/{name.removeprefix('docs/')}{anchor})"
    return text if place.exists() else found[0]
