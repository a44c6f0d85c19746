"""Small detection data sets, for tests."""

import io
import json

import numpy as np
from PIL import Image

CLASSES = ("square", "disc")
CATEGORY_IDS = (7, 3)  # in the order of the file
COLOURS = np.array([(220, 60, 60), (60, 60, 220)])


def png(image):
    """The bytes of a PNG file of an array."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def example(rng, height, width, count):
    """An image (H, W, 3) with squares and discs, and their boxes (x, y, w, h) and classes."""
    image = rng.integers(0, 90, (height, width, 3)).astype(np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    objects = []
    for _ in range(count):
        side = int(rng.integers(min(height, width) // 5, min(height, width) // 2))
        top, left = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
        kind = int(rng.integers(2))
        dy, dx = abs(y - top - side / 2), abs(x - left - side / 2)
        inside = np.maximum(dy, dx) < side / 2 if kind == 0 else dy**2 + dx**2 < side**2 / 4
        image[inside] = COLOURS[kind]
        objects.append(((left, top, side, side), kind))
    return image, objects


def polygon(box, kind):
    """The outline of an object, as COCO has it."""
    left, top, side, _ = box
    if kind == 0:
        corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
    else:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        middle = np.array((left, top)) + side / 2
        corners = middle + side / 2 * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    return [np.ravel(corners).round(2).tolist()]


def write_coco(folder, counts, sizes, seed=0):
    """Writes SPLIT/N.png and annotations/instances_SPLIT.json; sizes take turns.

    Every fifth image has no objects. Image ids have gaps, and so have category ids.

    Args:
      folder: of the data set.
      counts: number of images by split.
      sizes: (height, width) pairs.
      seed: of the images.
    """
    rng = np.random.default_rng(seed)
    (folder / "annotations").mkdir(parents=True)
    for split, count in counts.items():
        (folder / split).mkdir()
        content = {
            "images": [],
            "annotations": [],
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(CATEGORY_IDS, CLASSES, strict=True)
            ],
        }
        for number in range(count):
            height, width = sizes[number % len(sizes)]
            image, objects = example(rng, height, width, 0 if number % 5 == 4 else number % 3 + 1)
            name = f"{number:03}.png"
            Image.fromarray(image).save(folder / split / name)
            content["images"].append(
                {"id": 10 + 3 * number, "file_name": name, "height": height, "width": width}
            )
            for box, kind in objects:
                content["annotations"].append(
                    {
                        "id": 5 + 2 * len(content["annotations"]),
                        "image_id": 10 + 3 * number,
                        "category_id": CATEGORY_IDS[kind],
                        "bbox": list(box),
                        "area": box[2] * box[3] * (1 if kind == 0 else 0.75),
                        "iscrowd": 0,
                        "segmentation": polygon(box, kind),
                    }
                )
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return folder


def data(folder, **fields):
    """The section `config.data` for such a folder."""
    return {
        "folder": str(folder), "name": None, "data_dir": None, "format": None, "classes": None,
        "annotations": "annotations/instances_{split}.json", "images": "{split}", "masks": True,
        "unreadable": "stop", **fields,
    }  # fmt: skip
