"""Makes a small segmentation data set of cell nuclei from the image in StarDist's wheel.

The wheel carries a fluorescence image of 512 x 512 pixels with a mask of every nucleus, from the
Data Science Bowl 2018 (Broad Bioimage Benchmark Collection BBBC038, CC0); StarDist itself is
BSD-3-Clause. The wheel is only read as a zip file, and need not be installed:

    python -m pip download --no-deps stardist
    python examples/nuclei.py stardist-*.whl out/nuclei-data
    python -m train.main --config configs/segmentation/nuclei.py --workdir out/nuclei

Classes are background and nucleus. Overlapping tiles of the left two thirds are for training; four
tiles of the right quarter, which shares no pixel with them, for validation. One image says nothing
about others: this is an example of a data set of one's own, not a benchmark.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("background", "nucleus")
SIDE = 128  # of a tile, in pixels
_STRIDE = 32  # of the training tiles
_TRAINING_COLUMNS = 352


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="stardist-*.whl, as pip downloads it")
    parser.add_argument("folder", type=Path, help="the folder to write; it must not exist")
    options = parser.parse_args(arguments)
    try:
        image, nuclei = read_wheel(options.wheel)
        write(image, (nuclei > 0).astype(np.uint8), options.folder)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        sys.exit(f"error: {error}. Give a wheel of StarDist and a folder that does not exist.")


def read_wheel(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 (H, W), and the number of the nucleus of each pixel, 0 for none."""
    with zipfile.ZipFile(path) as wheel:
        pages = [
            np.array(Image.open(io.BytesIO(wheel.read(f"stardist/data/images/{name}.tif"))))
            for name in ("img2d", "mask2d")
        ]
    image, nuclei = pages
    low, high = np.percentile(image, (0.5, 99.8))
    return (255 * np.clip((image - low) / (high - low), 0, 1)).round().astype(np.uint8), nuclei


def write(image: np.ndarray, classes: np.ndarray, folder: Path) -> None:
    """Writes the tiles as `images/SPLIT/*.png` and `masks/SPLIT/*.png`, and `classes.txt`."""
    folder.mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    height, width = image.shape
    rows = {"train": range(0, height - SIDE + 1, _STRIDE), "val": range(0, height, SIDE)}
    columns = {"train": range(0, _TRAINING_COLUMNS - SIDE + 1, _STRIDE), "val": [width - SIDE]}
    for split in rows:
        for kind, pixels in (("images", image), ("masks", classes)):
            (folder / kind / split).mkdir(parents=True)
            for top in rows[split]:
                for left in columns[split]:
                    tile = pixels[top : top + SIDE, left : left + SIDE]
                    Image.fromarray(tile).save(folder / kind / split / f"{top:03}_{left:03}.png")


if __name__ == "__main__":
    main()
