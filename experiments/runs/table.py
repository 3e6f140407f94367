"""A table of text, for any format."""

from typing import NamedTuple


class Table(NamedTuple):
    """A titled grid of text."""

    title: str
    header: list[str]
    lines: list[list[str]]

    def markdown(self) -> str:
        """Returns the grid as Markdown, without the title."""
        lines = [self.header, ["---"] * len(self.header), *self.lines]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def __str__(self) -> str:
        return f"{self.title}\n\n{self.markdown()}"
