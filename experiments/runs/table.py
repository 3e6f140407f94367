"""A table of text, for any format."""

from typing import NamedTuple


class Table(NamedTuple):
    """A titled grid of text."""

    title: str
    header: list[str]
    lines: list[list[str]]
    notes: tuple[str, ...] = ()  # below it

    def markdown(self) -> str:
        """Returns the grid as Markdown, without title and notes."""
        cells = [list(map(_cell, line)) for line in (self.header, *self.lines)]
        lines = [cells[0], ["---"] * len(self.header), *cells[1:]]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def __str__(self) -> str:
        return f"{self.title}\n\n{self.markdown()}"


def _cell(text: str) -> str:
    """A cell of a Markdown table, in which names and values of files are only text."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
