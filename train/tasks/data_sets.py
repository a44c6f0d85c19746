"""What all tasks ask of the section `data` of a configuration, and of the classes of data sets."""

from collections.abc import Mapping, Sequence
from typing import Any

from replk_jax.checkpoint import Checkpoint
from train.data.splits import Reading
from train.errors import RunError


def evaluation_names(eval_split: str, more_eval_splits: Sequence[str]) -> dict[str, str]:
    """The split of each evaluation, by the evaluation's name.

    Raises:
      RunError: a split is named twice.
    """
    splits = (eval_split, *more_eval_splits)
    if len(set(splits)) != len(splits):
        raise RunError(
            f"config.data.more_eval_splits = {tuple(more_eval_splits)} names a split twice, or "
            f"config.data.eval_split = {eval_split!r}."
        )
    return {"eval": eval_split} | {f"eval_{split}": split for split in more_eval_splits}


def reading_options(data: Mapping[str, Any]) -> Reading:
    """The options for reading images, from `data.reading` and `data.unreadable`."""
    reading = data["reading"]
    return Reading(reading["threads"], reading["workers"], data["unreadable"] == "replace")


def require_same_classes(
    train_split: str, training: Sequence[str], eval_split: str, evaluation: Sequence[str]
) -> None:
    """Raises RunError unless two splits have the same names of classes."""
    if tuple(training) != tuple(evaluation):
        raise RunError(
            f"The splits {train_split!r} and {eval_split!r} do not have the same classes: "
            f"{_brief(training)} and {_brief(evaluation)}."
        )


def require_classes_of(
    network: Checkpoint, path: str, split: str, class_names: Sequence[str]
) -> None:
    """Raises RunError unless the network of a file was trained on the classes of a split."""
    ours, theirs = tuple(class_names), network.class_names
    if len(ours) != network.model.num_classes:
        raise RunError(
            f"{path} has {network.model.num_classes} classes; the split {split!r} has {len(ours)}."
        )
    if theirs is not None and theirs != ours:
        pairs = enumerate(zip(theirs, ours, strict=True))
        number, (their, our) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise RunError(
            f"{path} and the split {split!r} have different classes: class {number} is {their!r} "
            f"in the file and {our!r} in the split."
        )


def _brief(names: Sequence[str]) -> str:
    """The number of names, and the first three."""
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}{', ...' if len(names) > 3 else ''})"
