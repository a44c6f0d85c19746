"""Images that cannot be read: they are reported and listed; too many of them are an error."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from replk_jax.io.text import escaped
from train.errors import RunError

Report = Callable[[str], None]

_MAX_FRACTION = 0.01  # of the images
_MAX_COUNT = 10  # allowed in a small data set, too
# The fraction is taken over this number of images, to notice a disk that fails late in a run.
_WINDOW = 100_000


def reported(
    batches: Iterator[dict[str, np.ndarray]], report: Report
) -> Iterator[dict[str, np.ndarray]]:
    """Removes the field `unreadable` from the batches, and reports each line in it.

    Args:
      batches: from `train.data.pipeline`.
      report: called with a message for each image that cannot be read, whenever it is drawn.

    Raises:
      RunError: more than 1 % of the last images, and more than ten, could not be read.
    """
    seen, unreadable = 0, set()
    for batch in batches:
        examples = batch.pop("unreadable")
        messages = [line for lines in examples if lines for line in lines.split("\n")]
        for message in messages:
            report(message)
        seen += len(examples)
        unreadable.update(messages)
        if len(unreadable) > max(_MAX_COUNT, _MAX_FRACTION * seen):
            raise RunError(
                f"{len(unreadable)} of the last {seen} images could not be read, too many to "
                f"continue. {messages[-1]} Replace or remove them."
            )
        if seen >= _WINDOW:
            seen, unreadable = 0, set()
        yield batch


class UnreadableList:
    """A file with a line for each image that could not be read.

    Args:
      path: the file. Lines that it already has are kept, and are not added again.
      say: called with the message for each image that is new in the list.
    """

    def __init__(self, path: Path, say: Report):
        self.path = path
        self._say = say
        self._known = set(_lines(path)) if path.exists() else set()

    def __call__(self, message: str) -> None:
        """Adds the message for an image as one line, with escapes, unless the list has it."""
        message = escaped(message)
        if message in self._known:
            return
        self._known.add(message)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(message + "\n")
        except OSError as error:
            message += f" ({self.path} could not be written: {error.strerror}.)"
        self._say(message)


def _lines(path: Path) -> list[str]:
    """The lines of a file. `str.splitlines` also splits at characters that file names may have."""
    return path.read_text("utf-8", errors="surrogateescape").split("\n")
