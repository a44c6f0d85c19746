"""models: lists the models and their published checkpoints, or counts one model part by part."""

import argparse
import difflib
from collections.abc import Iterable, Iterator, Sequence

from replk_jax import pretrained
from replk_jax.cli.argument_types import positive
from replk_jax.detection.pretrained_table import PretrainedDetector
from replk_jax.detection.registry import create_detector, find_detector, list_detectors
from replk_jax.detection.table import DETECTORS
from replk_jax.models import create_model, list_models
from replk_jax.models.aliases import spelling
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.pretrained_table import Pretrained, PublishedFile
from replk_jax.models.registry import resolve_name
from replk_jax.models.summary import Summary, summary
from replk_jax.segmentation.pretrained_table import PretrainedSegmenter
from replk_jax.segmentation.registry import create_segmenter, find_segmenter, list_segmenters
from replk_jax.segmentation.table import SEGMENTERS

_EXPLANATION = """\
Multiply-adds (MACs) of the merged convolutions for one image, as the papers count them. Top-1 is
the published accuracy on ImageNet-1K at that size, in per cent: of the model's first checkpoint in
--pretrained, or (*) of a model that was published without weights. Segmenters and detectors come
last; the parameters of a segmenter before merging include the auxiliary head."""


def add_parser(verbs) -> None:
    models = verbs.add_parser(
        "models", help="list the models or their checkpoints, or count one part by part"
    )
    models.add_argument("name", nargs="?", help="a model; without it, all are listed")
    choice = models.add_mutually_exclusive_group()
    choice.add_argument(
        "--image-size",
        type=positive,
        help="pixels (that of the published accuracy, else 224; that of the published tests of a "
        "segmenter or detector)",
    )
    choice.add_argument(
        "--pretrained",
        action="store_true",
        help="list the published checkpoints: tag, accuracy, image size, classes, licence, URLs",
    )
    models.set_defaults(run=_models)


def _models(arguments: argparse.Namespace) -> None:
    if arguments.pretrained:
        _list_checkpoints(arguments.name)
    elif arguments.name and (composite := _composite(arguments.name)):
        print(summary(_create(composite), _composite_size(composite, arguments)))
    elif arguments.name:
        model = create_model(arguments.name)
        size = arguments.image_size or _usual_size(pretrained.published_accuracy(arguments.name))
        print(summary(model, size))
    else:
        _list_models(arguments.image_size)
        _list_composites(list_segmenters(), arguments)
        _list_composites(list_detectors(), arguments)
        print(_EXPLANATION)


def _composite(name: str) -> str | None:
    """The segmenter or detector with a name; None without one.

    Raises:
      ValueError: the name is close to that of one.
    """
    if composite := find_segmenter(name) or find_detector(name):
        return composite
    known = {spelling(each): each for each in (*list_segmenters(), *list_detectors())}
    if close := difflib.get_close_matches(spelling(name), known, cutoff=0.75):
        names = " or ".join(repr(known[match]) for match in close)
        raise ValueError(f"Unknown model {name!r}. Did you mean {names}?")
    return None


def _create(composite: str) -> CompositeNetwork:
    return create_segmenter(composite) if composite in SEGMENTERS else create_detector(composite)


def _list_models(image_size: int | None) -> None:
    print(f"{'':30}{'parameters':>13}{'merged':>13}{'MACs':>19}{'image':>7}  top-1")
    for name in list_models():
        published = pretrained.published_accuracy(name)
        size = image_size or _usual_size(published)
        counts = summary(create_model(name), size)
        print(f"{name:30}{_figures(counts)}{size:7}{_accuracy(published, size)}", flush=True)


def _list_composites(names: Iterable[str], arguments: argparse.Namespace) -> None:
    print()
    for name in names:
        height, width = _composite_size(name, arguments)
        counts = summary(_create(name), (height, width))
        print(f"{name:48}{_figures(counts)}{f'{height}x{width}':>11}", flush=True)


def _figures(counts: Summary) -> str:
    return f"{counts.training.parameters:13,}{counts.merged.parameters:13,}{counts.paper_flops:19,}"


def _composite_size(name: str, arguments: argparse.Namespace) -> tuple[int, int]:
    """(height, width): what the user asks for, or that at which the network is tested."""
    side = arguments.image_size
    known = SEGMENTERS[name] if name in SEGMENTERS else DETECTORS[name]
    return (side, side) if side else known.image_size


def _usual_size(published: pretrained.Accuracy | None) -> int:
    return published.image_size if published else 224


def _accuracy(published: pretrained.Accuracy | None, size: int) -> str:
    if published is None or published.image_size != size:
        return ""
    return f"{published.top1:7.2f}{'' if published.has_weights else ' *'}"


def _list_checkpoints(name: str | None) -> None:
    if name is None:
        _print_tables(pretrained.ALL)
        return
    known = _composite(name) or resolve_name(name)
    entries = pretrained.entries_of(known)
    if not entries:
        print(f"No checkpoint of {known} was published.")
    _print_tables(entries)


def _print_tables(entries: Sequence[pretrained.Entry]) -> None:
    classifiers = [entry for entry in entries if isinstance(entry, Pretrained)]
    segmenters = [entry for entry in entries if isinstance(entry, PretrainedSegmenter)]
    detectors = [entry for entry in entries if isinstance(entry, PretrainedDetector)]
    if classifiers:
        print("\n".join(_table_of(classifiers)))
    if segmenters:
        print("\n".join(_table_of_segmenters(segmenters)))
    if detectors:
        print("\n".join(_table_of_detectors(detectors)))


def _table_of(entries: Iterable[Pretrained]) -> Iterator[str]:
    """A row for each checkpoint, and below it a line for each file that has its weights."""
    yield f"{'':32}{'top-1':>7}{'top-5':>8}{'image':>7}{'classes':>9}  licence"
    for entry in entries:
        top1, top5 = _per_cent(entry.top1), _per_cent(entry.top5)
        size, classes = entry.preprocessing.image_size, entry.num_classes or "-"
        yield f"{entry.tag:32}{top1:>7}{top5:>8}{size:7}{classes:>9}  {entry.licence or '-'}"
        yield from (f"  {_location(file)}" for file in entry.files)


def _table_of_segmenters(entries: Iterable[PretrainedSegmenter]) -> Iterator[str]:
    """As `_table_of`, with the mIoU at a single scale and at several, and the test protocol."""
    yield f"{'':38}{'mIoU':>7}{'several':>9}{'classes':>9}  licence"
    for entry in entries:
        yield (
            f"{entry.tag:38}{entry.miou:7.1f}{entry.miou_multi_scale:9.1f}{entry.num_classes:9}"
            f"  {entry.licence or '-'}"
        )
        corners = "" if entry.align_corners else "no "
        yield f"  {entry.preprocessing.in_words()}; {corners}align_corners"
        yield from (f"  {_location(file)}" for file in entry.files)


def _table_of_detectors(entries: Iterable[PretrainedDetector]) -> Iterator[str]:
    """As `_table_of`, with the AP of boxes and masks on COCO, and the preprocessing."""
    yield f"{'':44}{'box AP':>7}{'mask AP':>9}{'classes':>9}  licence"
    for entry in entries:
        mask_ap = "-" if entry.mask_ap is None else f"{entry.mask_ap:.1f}"
        yield (
            f"{entry.tag:44}{entry.box_ap:7.1f}{mask_ap:>9}{entry.num_classes:9}"
            f"  {entry.licence or '-'}"
        )
        yield f"  {entry.preprocessing.in_words()}"
        yield from (f"  {_location(file)}" for file in entry.files)


def _per_cent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.2f}"


def _location(file: PublishedFile) -> str:
    """The link, the file's name where the link does not have it, and what is known of the hash."""
    words = [file.url]
    if file.name and file.name not in file.url:
        words.append(file.name)
    if file.sha256:
        words.append(f"SHA-256 {file.sha256}{'' if len(file.sha256) == 64 else '...'}")
    return "  ".join(words)
