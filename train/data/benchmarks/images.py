"""Synthetic photographs and masks, the same for each call."""

import io
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

_SHAPES = 20  # in a photograph, and in its mask


class Kind(NamedTuple):
    """Photographs of a size in pixels, and of about so many bytes."""

    width: int
    height: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def photograph(rng: np.random.Generator, kind: Kind) -> bytes:
    """A JPEG file with soft and hard shapes, and as much noise as makes up its size."""
    image = 128 + np.sum([_noise(rng, kind, cell) * cell / 2 for cell in (128, 32, 8)], axis=0)
    for _ in range(_SHAPES):
        color = rng.uniform(0, 255, 3)
        _draw_ellipse(image, rng, kind, color.tolist())
    grain = _noise(rng, kind, 2)
    quality = int(rng.integers(85, 96))
    data = b""
    for strength in range(0, 100, 2):
        data = _jpeg(np.clip(image + strength * grain, 0, 255).astype(np.uint8), quality)
        if len(data) >= kind.bytes:
            break
    return data


def mask(rng: np.random.Generator, kind: Kind, largest: int) -> bytes:
    """A PNG file of a mask with values from 0 to `largest`, in horizontal bands with shapes."""
    values = np.zeros((kind.height, kind.width), np.uint8)
    for top in np.sort(rng.integers(0, kind.height, 4)):
        values[top:] = rng.integers(1, largest + 1)
    for _ in range(_SHAPES):
        _draw_ellipse(values, rng, kind, int(rng.integers(0, largest + 1)))
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def _draw_ellipse(
    image: np.ndarray, rng: np.random.Generator, kind: Kind, color: list[float] | int
) -> None:
    centre, axes = rng.integers((kind.width, kind.height)), rng.integers(5, 120, 2)
    angle = rng.uniform(0, 180)
    value = color if isinstance(color, list) else [color]
    cv2.ellipse(image, (centre.tolist(), (2 * axes).tolist(), angle), value, -1)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def _noise(rng: np.random.Generator, kind: Kind, cell: int) -> np.ndarray:
    """Noise that is smooth over `cell` pixels, stronger in luminance than in colour, (H, W, 3)."""
    shape = (kind.height // cell + 1, kind.width // cell + 1)
    coarse = rng.normal(size=(*shape, 1)) + rng.normal(0, 0.3, size=(*shape, 3))
    return cv2.resize(coarse, (kind.width, kind.height), interpolation=cv2.INTER_CUBIC)
