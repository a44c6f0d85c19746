"""What a look through a data set found, and its form as text and JSON."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from replk_jax.io.text import escaped

_SHOWN = 10  # findings of one kind in a split, as text

Severity = Literal["error", "warning"]


class Problem(NamedTuple):
    """Something that is wrong with a file; see `Finding`."""

    severity: Severity
    kind: str
    message: str

    def found_in(self, split: str) -> "Finding":
        """The finding that a split has it."""
        return Finding(self.severity, self.kind, split, self.message)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something in a data set that is wrong, or probably not intended.

    Attributes:
      severity: "error" for what training stops at or must not be trained on.
      kind: in a word or two, the same for all findings of a kind.
      split: where it is.
      message: one line with the name of the file, what it means and what to do.
    """

    severity: Severity
    kind: str
    split: str
    message: str

    def __str__(self) -> str:
        return escaped(f"{self.severity}: {self.split}: {self.message}")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: the first column is text, the others are numbers.

    Attributes:
      header: titles of the columns.
      rows: a text for each column.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        cells = [[escaped(cell) for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        )


@dataclasses.dataclass(frozen=True)
class Examination:
    """What a look through a data set found.

    Attributes:
      findings: errors and warnings, in the order of the splits.
      tables: statistics to print.
      statistics: for JSON, by split.
    """

    findings: Sequence[Finding]
    tables: Sequence[Table]
    statistics: Mapping[str, Any]

    @property
    def errors(self) -> int:
        """The number of errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def text(self) -> str:
        """The tables and findings; of many findings of one kind in a split, the first ten."""
        return "\n\n".join([*map(str, self.tables), "\n".join(self._lines())])

    def json(self) -> dict[str, Any]:
        """All findings and statistics, of types that JSON has."""
        return {
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "splits": dict(self.statistics),
        }

    def _lines(self) -> Iterator[str]:
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self.findings:
            key = (finding.severity, finding.split, finding.kind)
            groups.setdefault(key, []).append(finding)
        for (severity, split, kind), found in groups.items():
            yield from map(str, itertools.islice(found, _SHOWN))
            if (more := len(found) - _SHOWN) > 0:
                yield f"{severity}: {split}: {more:,} more of this kind ({kind}); --json lists all."
        warnings = len(self.findings) - self.errors
        yield f"{_count(self.errors, 'error')}, {_count(warnings, 'warning')}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
