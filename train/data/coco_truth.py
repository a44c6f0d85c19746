"""The truth of a COCO evaluation, whatever the format of the data set."""

from typing import Any

from train.data.annotated_images import DetectionSource


def coco_truth(source: DetectionSource, *, masks: bool) -> dict[str, Any]:
    """All objects of a split in the form of COCO's annotation files.

    Args:
      source: the split.
      masks: whether to read the masks too; for data sets of TensorFlow Datasets this reads all
        examples.

    Returns:
      Lists of `images`, `annotations` and `categories`. Numbers of images are the `image_ids` of
      the table, those of categories the `category_ids` of the source.

    Raises:
      ImageError: a mask cannot be used.
    """
    table = source.table
    annotations = []
    for image, image_id in enumerate(table.image_ids.tolist()):
        size, objects = table.size(image), table.objects(image)
        stored = source.reader.read_masks(image) if masks and len(objects.boxes) else None
        for i in range(len(objects.boxes)):
            annotation = {
                "image_id": image_id,
                "category_id": source.category_ids[objects.classes[i]],
                "bbox": objects.boxes[i].tolist(),
                "area": float(objects.areas[i]),
                "iscrowd": int(objects.crowd[i]),
            }
            if stored is not None:
                annotation["segmentation"] = stored.segmentation(int(objects.numbers[i]), *size)
            annotations.append(annotation)
    return {
        "images": [
            {"id": image_id, "height": height, "width": width}
            for image_id, (height, width) in zip(
                table.image_ids.tolist(), table.sizes.tolist(), strict=True
            )
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(source.category_ids, source.class_names, strict=True)
        ],
    }
