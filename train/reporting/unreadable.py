"""Images that a run could not read: reported, listed, and an error where they are too many."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from replk_jax.io.text import escaped
from train.errors import RunError

Report = Callable[[str], None]

# More than 1 % of the images is no accident; but a few may be in the smallest set.
_SHARE = 0.01
_FEW = 10
# Images over which the share is taken, so that a disk that fails late is noticed too.
_WINDOW = 100_000


def reported(
    batches: Iterator[dict[str, np.ndarray]], report: Report
) -> Iterator[dict[str, np.ndarray]]:
    """The batches without their field `unreadable`, each line of which is reported.

    Args:
      batches: from `train.data.pipeline`.
      report: called with the name of an image and what is wrong with it, each time it is met.

    Raises:
      RunError: more than 1 % of the last images, and more than ten, could not be read.
    """
    seen, unreadable = 0, set()
    for batch in batches:
        of_examples = batch.pop("unreadable")
        messages = [line for lines in of_examples if lines for line in lines.split("\n")]
        for message in messages:
            report(message)
        seen += len(of_examples)
        unreadable.update(messages)
        if len(unreadable) > max(_FEW, _SHARE * seen):
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
      path: the file; lines that it has already stay, and are not added again.
      say: called for each image that is new to the list.
    """

    def __init__(self, path: Path, say: Report):
        self.path = path
        self._say = say
        self._known = set(_lines(path)) if path.exists() else set()

    def __call__(self, message: str) -> None:
        """Adds an image, unless it is there; as one line, escaped where it cannot be printed."""
        message = escaped(message)
        if message in self._known:
            return
        self._known.add(message)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(message + "\n")
        except OSError as error:  # the run does without this image, and without the list too
            message += f" (It is not in {self.path}: {error.strerror}.)"
        self._say(message)


def _lines(path: Path) -> list[str]:
    """Not `str.splitlines`, which also breaks lines at characters that a file name may hold."""
    return path.read_text("utf-8", errors="surrogateescape").split("\n")
