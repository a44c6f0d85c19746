"""COCO's average precision and recall of boxes and masks, computed by a library.

faster-coco-eval is the library; pycocotools, which gives the same numbers, is the alternative. Both
are reached only from here.
"""

import contextlib
import dataclasses
import importlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from train.data import coco_masks
from train.errors import RunError

Kind = Literal["bbox", "segm"]

# The modules of each library with its classes COCO and COCOeval.
_MODULES = {
    "faster_coco_eval": ("faster_coco_eval.core.coco", "faster_coco_eval.core.faster_eval_api"),
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"),
}
LIBRARIES = tuple(_MODULES)

# The axes of the library's arrays, beside recalls and categories.
_OVERLAPS = tuple(range(50, 100, 5))  # least overlap of a match, in percent
_AREAS = ("all", "small", "medium", "large")
_LIMITS = (1, 10, 100)  # detections per image and category


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
    """The result of an evaluation. A value is between 0 and 1, or None where there is no truth.

    Attributes:
      summary: `AP` (mean over the overlaps 0.5, 0.55, ..., 0.95), `AP50`, `AP75`; by the area in
        pixels, `AP_small` (at most 32 x 32), `AP_medium` and `AP_large` (96 x 96 or more); the
        recalls `AR_1`, `AR_10`, `AR_100` with so many detections per image and category, and
        `AR_small`, `AR_medium`, `AR_large`.
      by_category: by name, in the order of the truth, `AP`, `AP50` and `AP75`; empty if categories
        were ignored.
    """

    summary: dict[str, float | None]
    by_category: dict[str, dict[str, float | None]]


def evaluate(
    truth: Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    kind: Kind = "bbox",
    *,
    areas_of_boxes: bool = False,
    class_agnostic: bool = False,
    library: str = LIBRARIES[0],
) -> AveragePrecision:
    """Compares detections with the truth, as COCO does.

    Args:
      truth: as in COCO's annotation files: `images` (with `id`, `height`, `width`), `categories`
        (with `id`, `name`), and `annotations` (with `image_id`, `category_id`, `bbox`, `area`,
        `iscrowd`, and for masks `segmentation`). The order of annotations counts, their ids do
        not. Every image counts, with detections or without.
      results: detections in COCO's result format, with `image_id`, `category_id`, `score`, and as
        `kind` asks `bbox` ([x, y, width, height]) or `segmentation` (compressed run lengths).
      kind: overlaps are those of boxes ("bbox") or of masks ("segm").
      areas_of_boxes: of masks only. The area of a detection is that of its box; by default it is
        that of its mask, as in mmdetection.
      class_agnostic: ignores the categories.
      library: one of `LIBRARIES`.

    Raises:
      ValueError: a detection of an unknown image or category, or with a score that is not finite;
        an annotation without a mask, or two categories of one name.
      RunError: the library is not installed.
    """
    _check_truth(truth, kind)
    detections = _detections(_checked(results, truth), kind, areas_of_boxes)
    precision, recall = _arrays(truth, detections, kind, class_agnostic, library)
    by_category = {}
    if not class_agnostic:
        ascending = sorted(category["id"] for category in truth["categories"])
        for category in truth["categories"]:
            index = ascending.index(category["id"])
            by_category[category["name"]] = _precisions(precision[:, :, index, 0, -1])
    return AveragePrecision(_summary(precision, recall), by_category)


def _check_truth(truth: Mapping[str, Any], kind: Kind) -> None:
    names = [category["name"] for category in truth["categories"]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Two categories are called {twice!r}.")
    if kind == "segm":
        for annotation in truth["annotations"]:
            if not annotation.get("segmentation"):
                raise ValueError(
                    f"An annotation of the image {annotation['image_id']} has no segmentation; "
                    "without it, masks cannot be evaluated."
                )


def _checked(
    results: Iterable[Mapping[str, Any]], truth: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for result in results:
        if result["image_id"] not in images:
            raise ValueError(f"A detection is in the unknown image {result['image_id']}.")
        if result["category_id"] not in categories:
            raise ValueError(f"A detection has the unknown category {result['category_id']}.")
        if not math.isfinite(result["score"]):
            raise ValueError(
                f"A detection in the image {result['image_id']} has the score {result['score']}."
            )
        yield result


def _detections(
    results: Iterable[Mapping[str, Any]], kind: Kind, areas_of_boxes: bool
) -> Iterator[dict[str, Any]]:
    """The results as annotations, as the library's `loadRes` makes them."""
    for result in results:
        if kind == "bbox":
            shape = {"bbox": list(result["bbox"])}
        else:
            shape = {"segmentation": result["segmentation"]}
        if kind == "bbox" or areas_of_boxes:
            area = result["bbox"][2] * result["bbox"][3]
        else:
            area = coco_masks.area(result["segmentation"])
        named = {name: result[name] for name in ("image_id", "category_id", "score")}
        yield {**named, **shape, "area": area}


def _index(dataset: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]], coco: Any) -> Any:
    """The library's form of the annotations."""
    index = coco.COCO()
    index.dataset = {
        "images": [dict(image) for image in dataset["images"]],
        "categories": [dict(category) for category in dataset["categories"]],
        # 0 means no match in the library, and of annotations with one id the last one counts.
        "annotations": [
            {**annotation, "id": number, "iscrowd": int(annotation.get("iscrowd", 0))}
            for number, annotation in enumerate(annotations, start=1)
        ],
    }
    index.createIndex()
    return index


def _arrays(
    truth: Mapping[str, Any],
    detections: Iterable[Mapping[str, Any]],
    kind: Kind,
    class_agnostic: bool,
    library: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Precisions (overlaps, recalls, categories, areas, limits), and recalls without that axis.

    Categories are in ascending order of their ids. -1 stands for no truth.
    """
    try:
        coco, evaluation = (importlib.import_module(name) for name in _MODULES[library])
    except ImportError as error:
        package = library.replace("_", "-")
        raise RunError(f"{package} is not installed: python -m pip install {package}") from error
    with contextlib.redirect_stdout(io.StringIO()):  # they print each step
        evaluator = evaluation.COCOeval(
            _index(truth, truth["annotations"], coco), _index(truth, detections, coco), kind
        )
        evaluator.params.useCats = int(not class_agnostic)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    areas, most = range(1, len(_AREAS)), _LIMITS.index(100)
    return {
        **_precisions(precision[:, :, :, 0, most]),
        **{f"AP_{_AREAS[area]}": _mean(precision[:, :, :, area, most]) for area in areas},
        **{f"AR_{limit}": _mean(recall[:, :, 0, i]) for i, limit in enumerate(_LIMITS)},
        **{f"AR_{_AREAS[area]}": _mean(recall[:, :, area, most]) for area in areas},
    }


def _precisions(precision: np.ndarray) -> dict[str, float | None]:
    """Average precisions, where the first axis is overlaps."""
    return {
        "AP": _mean(precision),
        "AP50": _mean(precision[_OVERLAPS.index(50)]),
        "AP75": _mean(precision[_OVERLAPS.index(75)]),
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None
