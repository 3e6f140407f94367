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
        cells = [[cell.replace("|", r"\|") for cell in line] for line in (self.header, *self.lines)]
        lines = [cells[0], ["---"] * len(self.header), *cells[1:]]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def __str__(self) -> str:
        return f"{self.title}\n\n{self.markdown()}"
