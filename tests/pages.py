"""The pages as tests read them: their fenced blocks, by page, heading and language."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Block(NamedTuple):
    """A fenced block, the heading above it, and what the text block right after it shows."""

    language: str
    text: str
    heading: str
    shown: str


def blocks(name: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    parts = re.findall(r"^#+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found, heading = [], ""
    for at, (title, language, body) in enumerate(parts):
        heading = title or heading
        shown = parts[at + 1][2] if at + 1 < len(parts) and parts[at + 1][1] == "text" else ""
        if language:
            found.append(Block(language, body, heading, shown))
    return found


def under(name: str, heading: str, language: str = "sql") -> list[str]:
    """The texts of the blocks of one language under a heading."""
    return [
        each.text for each in blocks(name) if (each.heading, each.language) == (heading, language)
    ]
