"""A table of text, for any format."""

from typing import NamedTuple

from jaxcifar.errors import printable


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
    """A cell of a Markdown table, in which no name or value of a file is a line or HTML."""
    return one_line(text).replace("|", r"\|").replace("<", "&lt;")


def one_line(text: str) -> str:
    """Returns a text of files without line ends, at which a row or a comment would end."""
    return printable(" ".join(text.split()))
