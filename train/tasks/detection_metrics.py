"""Average precision of a detector: detections are collected, and evaluated in the main process."""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.detection.pasting import paste_mask
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.detection.structures import Detections
from replk_jax.vision.coco_results import coco_result
from replk_jax.vision.images import ImageError
from train.data import coco_masks
from train.engine import parallel
from train.engine.task import Batch, Metrics, Table
from train.errors import RunError
from train.tasks.coco_evaluation import AveragePrecision, Kind, evaluate
from train.tasks.padded_images import normalized

Truth = Mapping[str, Any]  # as in COCO's annotation files

# The scores that are reported, by their names in `AveragePrecision`.
_SCORES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")
_PREFIXES: dict[Kind, str] = {"bbox": "", "segm": "mask_"}


def average_precision(
    truth: Callable[[], Truth], protocol: DetectionProtocol, *, masks: bool, library: str
) -> Metrics:
    """COCO's metrics of boxes, `AP`, `AP50`, ..., and of masks, `mask_AP`, ...

    Batches are those of `DetectionEvaluation`. A score without truth, of large objects where there
    are none for example, is left out; but `AP`, which is NaN then. If any outputs of the network
    are NaN or infinite, all scores are NaN.

    Args:
      truth: of the split; is called in the main process, once.
      protocol: of the test.
      masks: whether masks are evaluated too.
      library: see `coco_evaluation.evaluate`.
    """

    @functools.cache
    def read_truth() -> Truth | None:
        """The truth in the main process, None in others. All processes call this together.

        Raises:
          RunError: it cannot be read.
        """

        def read() -> Truth | None:
            try:
                return truth() if parallel.is_main_process() else None
            except ImageError as error:
                raise RunError(f"The masks to compare with cannot be read: {error}") from error

        return parallel.on_all_processes(read)

    kinds: tuple[Kind, ...] = ("bbox", "segm") if masks else ("bbox",)

    def inputs(batch: Batch) -> jax.Array:
        return normalized(batch["image"], batch["size"], protocol.mean, protocol.std)

    def comparable(forward: Callable[..., Any], batch: Batch, predictions: Any = None) -> Any:
        del predictions
        return forward(inputs(batch), method="comparable")

    def predict(forward: Callable[..., Any], batch: Batch) -> dict[str, Any]:
        return {
            "detections": forward(inputs(batch), sizes=batch["size"], scales=batch["scale"]),
            # The compiler computes the feature maps once.
            "finite": _finite(comparable(forward, batch)),
        }

    def statistics(predictions: Any, batch: Batch) -> dict[str, Any]:
        detections: Detections = predictions["detections"]
        return {
            "detections": detections if masks else detections._replace(masks=None),
            "finite": predictions["finite"],
            **{name: batch[name] for name in ("image_id", "original_size", "mask")},
        }

    def add(total: "CollectedDetections | None", more: Any) -> CollectedDetections:
        collected = total or CollectedDetections(read_truth(), kinds, library)
        collected.add(more)
        return collected

    def scores(collected: "CollectedDetections", examples: int) -> dict[str, float]:
        del examples
        if not collected.finite:
            names = [f"{_PREFIXES[kind]}{name}" for kind in kinds for name in _SCORES]
            return dict.fromkeys(names, float("nan"))
        found = {
            f"{_PREFIXES[kind]}{name}": collected.results[kind].summary[name]
            for kind in kinds
            for name in _SCORES
        }
        known = {name: value for name, value in found.items() if value is not None}
        return {"AP": float("nan")} | known

    def table(collected: "CollectedDetections", examples: int) -> Table:
        del examples
        rows: dict[str, dict[str, float | None]] = {}
        for kind in kinds if collected.finite else ():
            for category, values in collected.results[kind].by_category.items():
                named = {f"{_PREFIXES[kind]}{name}": value for name, value in values.items()}
                rows.setdefault(category, {}).update(named)
        return rows

    return Metrics(
        predict, statistics, scores, best_by="AP", checked=comparable, add=add, table=table
    )


class CollectedDetections:
    """The detections of a number of images, in COCO's result format, in the main process.

    Args:
      truth: as in COCO's annotation files; None in other processes.
      kinds: to evaluate.
      library: see `coco_evaluation.evaluate`.

    Attributes:
      finite: whether all outputs of the network are, for all images.
    """

    def __init__(self, truth: Truth | None, kinds: Sequence[Kind], library: str):
        self._truth, self._kinds, self._library = truth, kinds, library
        self._detected: list[dict[str, Any]] = []
        self._images: set[int] = set()
        self.finite = True

    def add(self, batch: Mapping[str, Any]) -> None:
        """Adds the detections of a batch.

        Args:
          batch: NumPy arrays: `detections`, a `Detections` in pixels of the images; `image_id`,
            int (N,); `original_size`, (N, 2), height and width; `mask`, bool (N,), False for rows
            that do not count; and `finite`, bool (N,).
        """
        self.finite &= bool((batch["finite"] | ~batch["mask"]).all())
        self.__dict__.pop("results", None)
        if self._truth is None:
            return
        category_ids = [category["id"] for category in self._truth["categories"]]
        counts = batch["mask"]
        image_ids = batch["image_id"][counts].tolist()
        self._images.update(image_ids)
        detections = jax.tree.map(lambda array: array[counts], batch["detections"])
        self._detected += coco_results(
            detections, image_ids, batch["original_size"][counts].tolist(), category_ids
        )

    @functools.cached_property
    def results(self) -> dict[Kind, AveragePrecision]:
        """The result for each kind, the same in all processes, which must all ask for it.

        Only images that were added count; one that cannot be read does not lower the scores.

        Raises:
          RunError: the truth makes no sense, or the library is not installed.
        """

        def computed() -> dict[str, Any]:
            assert self._truth is not None  # this is the main process
            truth = dict(self._truth)
            truth["images"] = [row for row in truth["images"] if row["id"] in self._images]
            truth["annotations"] = [
                row for row in truth["annotations"] if row["image_id"] in self._images
            ]
            try:
                results = {
                    kind: evaluate(truth, self._detected, kind, library=self._library)
                    for kind in self._kinds
                }
            except ValueError as error:
                raise RunError(f"Average precision cannot be computed: {error}") from error
            return {kind: [of.summary, of.by_category] for kind, of in results.items()}

        found = parallel.by_main_process(computed)
        return {kind: AveragePrecision(*found[kind]) for kind in self._kinds}


def coco_results(
    detections: Any,
    image_ids: Sequence[int],
    sizes: Sequence[Sequence[int]],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """The detections of a batch in COCO's result format, by image and score.

    Masks are pasted into their images by as many threads as there are processors.

    Args:
      detections: a `Detections` of NumPy arrays (N, D, ...), in pixels of the images.
      image_ids: of the N images.
      sizes: (height, width) of the N images.
      category_ids: of the classes.
    """
    results, masks = [], []
    for i, (image_id, (height, width)) in enumerate(zip(image_ids, sizes, strict=True)):
        found = jax.tree.map(lambda array, i=i: array[i], detections)
        for j in range(int(found.count)):
            category_id = category_ids[int(found.classes[j])]
            score = float(found.scores[j])
            results.append(coco_result(image_id, category_id, found.boxes[j], score, None))
            if found.masks is not None:
                masks.append((found.masks[j], found.boxes[j], (height, width)))
    if masks:
        # NumPy and the library let other threads run.
        with ThreadPoolExecutor() as pool:
            for result, segmentation in zip(results, pool.map(_segmentation, masks), strict=True):
                result["segmentation"] = segmentation
    return results


def _segmentation(
    mask_box_size: tuple[np.ndarray, np.ndarray, tuple[int, int]],
) -> coco_masks.RunLengths:
    """The run lengths of a mask that is pasted into its image."""
    return coco_masks.from_bitmap(paste_mask(*mask_box_size))


def _finite(outputs: Any) -> jax.Array:
    """Whether all arrays (N, ...) are finite, for each of N examples."""
    leaves = [jnp.isfinite(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(outputs)]
    return jnp.stack([leaf.all(axis=1) for leaf in leaves]).all(axis=0)
