"""Images that a run could not read: told, listed, and too many of them end it."""

from collections.abc import Callable, Iterator
from pathlib import Path

from replk_jax.io.text import escaped
from train.data.pipeline import Batch
from train.errors import RunError

Report = Callable[[str], None]

# More than 1 % of the images is no accident; but a few may be in the smallest set.
_SHARE = 0.01
_FEW = 10
# Images over which the share is taken, so that a disk that fails late is noticed too.
_WINDOW = 100_000


def reported(batches: Iterator[Batch], report: Report) -> Iterator[Batch]:
    """The batches without their field `unreadable`, of which every line is reported.

    Args:
      batches: from `train.data.pipeline`.
      report: is told of an image, by its name and what is wrong; of the same one again and again,
        as it is met again.

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
      say: is told of each image that is new to the list.
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
        except OSError as error:  # that an image is told of must not end what goes on without it
            message += f" (It is not in {self.path}: {error.strerror}.)"
        self._say(message)


def _lines(path: Path) -> list[str]:
    """Not `str.splitlines`, which also breaks lines at characters that a file name may hold."""
    return path.read_text("utf-8", errors="surrogateescape").split("\n")
