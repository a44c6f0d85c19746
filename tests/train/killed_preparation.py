"""Prepares imagenet2012 in forks of this process that kill themselves, until one comes to its end.

Each dies at its fifth image, when it has written a shard, for those are of three at most. Prints
what is in the folder of the set after each.
"""

import json
import os
import signal
import sys
from pathlib import Path

from tensorflow_datasets.core.utils import shard_utils

from tests.train import test_prepare
from train import prepare


def main(tars: str, data_dir: str) -> None:
    # Small images would all go into one shard.
    shard_utils.ShardConfig.min_shard_size = test_prepare.SMALL_SHARD
    whole, images = prepare.as_rgb_jpeg, 0

    def deadly(data: bytes, name: str) -> bytes:
        nonlocal images
        images += 1
        if images == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(data, name)

    prepare.as_rgb_jpeg = deadly
    states, status = [], None
    while status != 0:
        child = os.fork()
        if child == 0:
            prepare.prepare_imagenet(Path(tars), Path(data_dir), test_prepare.MOCK)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        files = [path for path in Path(data_dir).rglob("*") if path.is_file()]
        states.append({str(p.relative_to(data_dir)): p.stat().st_mtime_ns for p in files})
    print(json.dumps(states))


if __name__ == "__main__":
    main(*sys.argv[1:])
