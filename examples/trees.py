"""Makes a small detection data set of trees from the aerial photographs in DeepForest's wheel.

The wheel carries four photographs of the airborne observatory of NEON (National Ecological
Observatory Network), whose data are CC0, with a box around each of 951 trees; DeepForest, of which
the boxes are a part, is under the MIT licence. The wheel is only read as a zip file, and need not
be installed:

    python -m pip download --no-deps deepforest==2.1.0
    python examples/trees.py deepforest-*.whl out/trees-data
    python -m train.check --config configs/detection/trees.py
    python -m train.main --config configs/detection/trees.py --workdir out/trees

The folder has COCO's form: `train` and `val` with pictures, and a JSON file of annotations for
each. Overlapping tiles of three photographs are for training, and tiles of the fourth, side by
side, for validation. It shows another place of Yellowstone than the largest of the three. Four
photographs say little about others: this is an example of a data set of one's own, not a benchmark.
"""

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

PHOTOGRAPHS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "OSBS_029", "SOAP_061"),
    "val": ("2019_YELL_2_541000_4977000_image_crop",),
}
SIDE = 192  # of a tile, in pixels
_STRIDES = {"train": SIDE // 2, "val": SIDE}
# A tile has the boxes of which this share is in it, clipped.
LEAST_INSIDE = 0.5


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="deepforest-*.whl, as pip downloads it")
    parser.add_argument("folder", type=Path, help="the folder to write; it must not exist")
    options = parser.parse_args(arguments)
    try:
        photographs = {
            split: [read_photograph(options.wheel, name) for name in names]
            for split, names in PHOTOGRAPHS.items()
        }
        write(photographs, options.folder)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        sys.exit(f"error: {error}. Give a wheel of DeepForest and a folder that does not exist.")


def read_photograph(path: Path, name: str) -> tuple[Image.Image, np.ndarray]:
    """A photograph, RGB, and the boxes of its trees, (trees, 4): x1, y1, x2, y2 in pixels."""
    with zipfile.ZipFile(path) as wheel:
        pixels = Image.open(io.BytesIO(wheel.read(f"deepforest/data/{name}.png"))).convert("RGB")
        annotations = ElementTree.fromstring(wheel.read(f"deepforest/data/{name}.xml"))
    boxes = [
        [float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
        for box in annotations.iterfind("object/bndbox")
    ]
    return pixels, np.array(boxes)


def boxes_of_tile(boxes: np.ndarray, left: int, top: int) -> np.ndarray:
    """The boxes of a tile, clipped, in its own pixels."""
    shifted = boxes - (left, top, left, top)
    clipped = np.clip(shifted, 0, SIDE)
    return clipped[_areas(clipped) >= LEAST_INSIDE * _areas(shifted)]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def write(photographs: dict[str, list[tuple[Image.Image, np.ndarray]]], folder: Path) -> None:
    """Writes the tiles of each split and their annotations."""
    folder.mkdir(parents=True)
    (folder / "annotations").mkdir()
    for split, of_split in photographs.items():
        (folder / split).mkdir()
        images, annotations = [], []
        for number, (photograph, boxes) in enumerate(of_split):
            stride = _STRIDES[split]
            for top in range(0, photograph.height - SIDE + 1, stride):
                for left in range(0, photograph.width - SIDE + 1, stride):
                    file_name = f"{number}_{top:04}_{left:04}.png"
                    tile = photograph.crop((left, top, left + SIDE, top + SIDE))
                    tile.save(folder / split / file_name)
                    image_id = len(images) + 1
                    images.append(
                        {"id": image_id, "file_name": file_name, "width": SIDE, "height": SIDE}
                    )
                    for x1, y1, x2, y2 in boxes_of_tile(boxes, left, top).tolist():
                        annotations.append(
                            {
                                "id": len(annotations) + 1,
                                "image_id": image_id,
                                "category_id": 1,
                                "bbox": [x1, y1, x2 - x1, y2 - y1],
                                "area": (x2 - x1) * (y2 - y1),
                                "iscrowd": 0,
                            }
                        )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "tree"}],
        }
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
