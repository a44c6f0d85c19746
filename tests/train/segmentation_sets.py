"""Small segmentation data sets in folders, for tests."""

import numpy as np
from PIL import Image

from replk_jax.vision import label_sets

CLASSES = ("ground", "square", "disc")
COLOURS = np.array([(60, 60, 60), (220, 60, 60), (60, 60, 220)])


def example(rng, height, width):
    """An image (H, W, 3) with a square and a disc on noise, and its mask (H, W)."""
    mask = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    for label in (1, 2):
        radius = int(rng.integers(min(height, width) // 6, min(height, width) // 3))
        row, column = rng.integers(0, height), rng.integers(0, width)
        dy, dx = abs(y - row), abs(x - column)
        inside = np.maximum(dy, dx) <= radius if label == 1 else dy**2 + dx**2 <= radius**2
        mask[inside] = label
    image = COLOURS[mask] + rng.integers(-50, 50, (height, width, 3))
    mask[:2] = label_sets.IGNORED
    return image.clip(0, 255).astype(np.uint8), mask


def write(folder, counts, sizes, seed=0):
    """Writes images/SPLIT/N.png, masks/SPLIT/N.png and classes.txt; sizes take turns.

    Args:
      folder: of the data set.
      counts: number of images by split.
      sizes: (height, width) pairs.
      seed: of the images.
    """
    rng = np.random.default_rng(seed)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, mask = example(rng, *sizes[number % len(sizes)])
            Image.fromarray(image).save(folder / "images" / split / f"{number:03}.png")
            Image.fromarray(mask).save(folder / "masks" / split / f"{number:03}.png")
    return folder
