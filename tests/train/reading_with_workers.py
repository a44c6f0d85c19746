"""A program that reads batches by worker processes, and ends while more are under way.

    python -m tests.train.reading_with_workers HOW

HOW is "end", "raise" or "interrupt" (as by Ctrl-C).
"""

import signal
import sys

import grain
import jax.numpy as jnp
import numpy as np
from absl import flags

from train.data import pipeline


class Numbers:
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return {"label": np.int32(index)}


class Images(grain.transforms.RandomMap):
    def random_map(self, example, rng):
        return {**example, "image": rng.integers(0, 255, (64, 64, 3), np.uint8)}


def main(how):
    flags.FLAGS.mark_as_parsed()  # Grain's workers read them
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


if __name__ == "__main__":
    main(sys.argv[1])
