"""A program that reads batches by worker processes, and prints how many.

    python -m tests.train.reading_with_workers HOW

HOW is what happens then. While more batches are under way: "end", "raise" or "interrupt" (as by
Ctrl-C). Where there are three batches: "exhaust", which reads them all; "close", which closes the
iterator after two, when the workers have made the last; "damaged", where reading a fourth raises.
"""

import signal
import sys
import time

import grain
import jax.numpy as jnp
import numpy as np
from absl import flags

from replk_jax.vision.images import ImageError
from train.data import pipeline


class Numbers:
    def __init__(self, length=1000, damaged=None):
        self._length, self._damaged = length, damaged

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if index == self._damaged:
            raise ImageError(f"{index}.png is damaged.")
        return {"label": np.int32(index)}


class Images(grain.transforms.RandomMap):
    def random_map(self, example, rng):
        return {**example, "image": rng.integers(0, 255, (64, 64, 3), np.uint8)}


class Blank(grain.transforms.Map):
    def map(self, example):
        return {**example, "image": np.zeros((64, 64, 3), np.uint8)}


def main(how):
    flags.FLAGS.mark_as_parsed()  # Grain's workers read them
    if how in ("exhaust", "close", "damaged"):
        evaluate(how)
    else:
        train(how)


def train(how):
    reading = {"threads": 2, "workers": 2}
    batches = pipeline.train_batches(
        Numbers(), Images(), batch_size=16, seed=0, start_step=0, reading=reading, replace=False
    )
    used = [jnp.asarray(next(batches)["image"]) for _ in range(3)]
    print("read", len(used), flush=True)
    match how:
        case "raise":
            raise ValueError("as a step may")
        case "interrupt":
            signal.raise_signal(signal.SIGINT)


def evaluate(how):
    numbers = Numbers(64, damaged=50) if how == "damaged" else Numbers(48)
    reading = {"threads": 1, "workers": 1}
    batches = pipeline.eval_batches(numbers, Blank(), batch_size=16, reading=reading, replace=False)
    count = 0
    for count, _ in enumerate(batches, 1):
        if how == "close" and count == 2:
            time.sleep(1)
            batches.close()
    print("read", count, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
