"""COCO's annotation files: JSON with images, annotations and categories."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from replk_jax.io.errors import error_text
from train.data.names import Names
from train.data.object_tables import ObjectTable, TableBuilder
from train.errors import RunError
from train.reporting.examination import Problem

_TOO_LARGE = 2**63  # for any number
_TOO_LARGE_SIDE = 2**31
_LISTS = ("images", "annotations", "categories")


class CocoFile(NamedTuple):
    """The contents of an annotation file.

    Attributes:
      table: the images in the order of the file, and the objects of each in the order of the file.
        Annotations with a problem are left out.
      file_names: of the images.
      class_names: the categories in the order of the file.
      category_ids: their numbers.
      segmentations: of each object in the table, JSON; None if no object has one.
      problems: found in the file, in its order.
    """

    table: ObjectTable
    file_names: Names
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    segmentations: Names | None
    problems: list[Problem]


def read_coco(path: Path, *, masks: bool) -> CocoFile:
    """Reads an annotation file. An annotation without an area has that of its box.

    The file of COCO's training images is read as a whole, which takes about 3 GB for a moment; what
    is kept takes about 60 MB, and 350 MB with the segmentations.

    Args:
      path: of the file.
      masks: whether to keep the segmentations.

    Raises:
      RunError: the file cannot be read, is not JSON, or has no lists of images, annotations and
        categories; or an image or a category lacks what it needs.
    """
    content = _load(path)
    problems: list[Problem] = []
    class_of = {
        _field(category, "id", int, path, "category", i): i
        for i, category in enumerate(content["categories"])
    }
    names = tuple(
        _field(category, "name", str, path, "category", i).strip()
        for i, category in enumerate(content["categories"])
    )
    if not names:
        raise RunError(f"{path} has no categories.")
    for kind, values in (("name", names), ("id", _ids(content["categories"]))):
        if repeated := _repeated(values):
            raise RunError(f"{path} has two categories with the {kind} {repeated[0]!r}.")
    images = _images(content["images"], path, problems)
    of_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    _require_different_ids(content["annotations"], problems)
    for number, annotation in enumerate(content["annotations"]):
        problem = _problem_of(annotation, number, of_image, class_of)
        if problem:
            problems.append(problem)
        else:
            of_image[annotation["image_id"]].append(annotation)
    builder = TableBuilder()
    ordered: list[dict[str, Any]] = []
    for image in images:
        builder.add_image(image["id"], image["height"], image["width"])
        for annotation in of_image[image["id"]]:
            _add(builder, annotation, class_of)
            ordered.append(annotation)
    has_masks = masks and any(annotation.get("segmentation") for annotation in ordered)
    return CocoFile(
        builder.table(),
        Names(image["file_name"] for image in images),
        names,
        tuple(class_of),
        Names(json.dumps(annotation.get("segmentation")) for annotation in ordered)
        if has_masks
        else None,
        problems,
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"The annotations {path} cannot be read: {error_text(error)}") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise RunError(
            f"{path} is no JSON, or not the whole of it: {error}. Download or copy it again."
        ) from error
    except RecursionError as error:
        raise RunError(f"{path} is JSON, but no annotations: it is nested too deeply.") from error
    lists = content if isinstance(content, dict) else {}
    missing = [name for name in _LISTS if not isinstance(lists.get(name), list)]
    if missing:
        raise RunError(
            f"{path} is no file of COCO's annotations of objects: it has no list of "
            f"{' and of '.join(missing)}."
        )
    return lists


def _images(images: Iterable[Any], path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """The images, each once."""
    found: dict[Any, dict[str, Any]] = {}
    for i, image in enumerate(images):
        number = _field(image, "id", (int, str), path, "image", i)
        name = _field(image, "file_name", str, path, "image", i)
        for side in ("height", "width"):
            if not 1 <= _field(image, side, int, path, "image", i) < _TOO_LARGE_SIDE:
                raise RunError(f"{path}: the image {name} has the {side} {image[side]}.")
        if number in found:
            problems.append(
                Problem(
                    "error",
                    "duplicate image id",
                    f"the images {found[number]['file_name']} and {name} have the same id "
                    f"{number!r}, so their annotations cannot be assigned to them: give every "
                    "image an id of its own.",
                )
            )
        else:
            found[number] = image
    return list(found.values())


def _field(item: Any, key: str, kind: Any, path: Path, noun: str, position: int) -> Any:
    """A field of an image or a category.

    Raises:
      RunError: it is missing or has another type.
    """
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RunError(
            f"{path}: the {noun} at position {position} has no valid {key}: {item!r:.200}"
        )
    return value


def _require_different_ids(annotations: Iterable[Any], problems: list[Problem]) -> None:
    for number in _repeated(_ids(annotations)):
        problems.append(
            Problem(
                "error",
                "duplicate annotation id",
                f"several annotations have the id {number!r}, and programs that find them by it "
                "would take one of them for all: give every annotation an id of its own.",
            )
        )


def _ids(items: Iterable[Any]) -> list[Any]:
    return [item["id"] for item in items if isinstance(item, dict) and _is_number(item.get("id"))]


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _problem_of(
    annotation: Any, position: int, images: dict[Any, Any], class_of: dict[int, int]
) -> Problem | None:
    """Why an annotation cannot be used; None if it can."""
    if not isinstance(annotation, dict):
        return _broken(position, f"is no dictionary: {annotation!r:.100}")
    name = f"annotation {annotation.get('id', f'at position {position}')}"
    image_id, category = annotation.get("image_id"), annotation.get("category_id")
    if not isinstance(image_id, int | str) or not _is_number(category):
        return _broken(name, "has no valid image_id or category_id")
    if image_id not in images:
        return Problem(
            "warning",
            "annotation of a missing image",
            f"{name} is of the image {image_id!r}, which is not in the list of images: it is left "
            "out; complete the list if the image should be there.",
        )
    if category not in class_of:
        return Problem(
            "error",
            "unknown category",
            f"{name} has the category {category!r}, which is not in the list of categories: add it "
            "there, or correct the annotation.",
        )
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return _broken(name, f"has no bbox of four numbers x, y, width, height: {box!r:.100}")
    if not _is_number(annotation.get("area", 0)):
        return _broken(name, f"has an area that is no number: {annotation['area']!r:.100}")
    if not _is_number(annotation.get("id", 0)):
        return _broken(name, "has an id that is no number")
    return None


def _broken(name: str | int, what: str) -> Problem:
    name = name if isinstance(name, str) else f"annotation at position {name}"
    return Problem("error", "broken annotation", f"{name} {what}; correct or remove it.")


def _is_number(value: Any) -> bool:
    """Whether it is a number that a table can hold: finite, and an integer of 64 bits."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _TOO_LARGE
    )


def _add(builder: TableBuilder, annotation: dict[str, Any], class_of: dict[int, int]) -> None:
    builder.add_object(
        annotation["bbox"],
        class_of[annotation["category_id"]],
        area=annotation.get("area"),
        crowd=bool(annotation.get("iscrowd", False)),
        ignored=bool(annotation.get("ignore", False)),
        object_id=annotation.get("id"),
    )
