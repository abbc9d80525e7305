"""Every code block of README.md and docs/ does what its page says: each page is one session in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.embed.server import serving

from .blocks import ROOT, Block, blocks, pages
from .notrun import TABLE, reason
from .session import PageFailed, run

RUN = ("sh", "bash", "python", "json", "toml", "console")


@pytest.mark.parametrize("page", [page for page in pages() if any(one.language in RUN for one in blocks(page))])
def test_the_blocks_of_a_page_do_what_it_says(page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")  # a short name: sockets lie below it
    words = next(one for one in blocks("README.md") if one.file == "words.py")  # the handler that all pages speak of
    with serving() as server:
        run(page, [words, *blocks(page)], folder, {"http://127.0.0.1:8080": server.url})


@pytest.mark.parametrize("page", pages())
def test_what_is_a_command_is_marked_as_one(page):
    programs = ("dspy-supervisor ", "make ", "sudo ", "pip ", "curl ", "python ", "systemctl ")
    for block in blocks(page):
        if block.language in ("", "text", "console"):
            wrong = [line for line in block.text.splitlines() if line.startswith(programs)]
            assert not wrong, f"{block}: this is sh: {wrong}"
        else:
            assert block.language in RUN or block.language.startswith("{"), f"{block}: {block.language}"


def test_what_is_not_run_has_a_reason_that_is_needed_and_a_test_instead():
    texts = [one.text for page in pages() for one in blocks(page)]
    texts += [line.strip() for text in texts for line in text.splitlines()]
    used = {row for text in texts if (row := reason(text))}
    assert used == set(TABLE)
    assert all((ROOT / row.instead).exists() for row in TABLE)


@pytest.mark.parametrize(
    ("language", "text", "wrong"),
    [
        ("sh", "dspy-supervisor submit --nonsense", "nonsense"),
        ("python", "from dspy_supervisor import Nonsense\n", "Nonsense"),
        ("json", '{"payload": {}, "priority": 1000}', "priority"),
        ("toml", "nonsense = 1\n", "nonsense"),
    ],
)
def test_a_wrong_block_is_found(language, text, wrong, tmp_path):
    with pytest.raises(PageFailed, match=wrong):
        run("page.md", [Block("page.md", 1, language, text, "")], tmp_path, {})


def test_an_output_that_is_another_is_found(tmp_path: Path):
    said = [Block("page.md", 1, "sh", "echo 6 words\n", ""), Block("page.md", 5, "console", "7 words\n", "")]
    with pytest.raises(PageFailed, match="7 words"):
        run("page.md", said, tmp_path, {})
