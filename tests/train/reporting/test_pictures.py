"""Pictures and tables of an evaluation."""

import io

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from train.reporting.console import table_text
from train.reporting.metric_writers import TensorBoard
from train.reporting.pictures import write_pictures
from train.reporting.reporter import Reporter

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def events(folder):
    """The events in the files of a folder: length (8 bytes), checksum (4), event, checksum (4)."""
    found = []
    for path in folder.iterdir():
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_later_pictures_replace_earlier_ones(tmp_path):
    write_pictures(tmp_path, {"eval_0": PIXELS[::-1]})
    write_pictures(tmp_path, {"eval_0": PIXELS, "eval_1": PIXELS[:3]})
    folder = tmp_path / "pictures"
    assert sorted(path.name for path in folder.iterdir()) == ["eval_0.png", "eval_1.png"]
    np.testing.assert_array_equal(Image.open(folder / "eval_0.png"), PIXELS)


def test_pictures_in_tensorboard(tmp_path):
    writer = TensorBoard(tmp_path / "tensorboard", 0)
    writer.write_pictures(7, {"eval_0": PIXELS})
    writer.close(failed=False)
    *_, event = events(tmp_path / "tensorboard")
    (value,) = event.summary.value
    assert (event.step, value.tag) == (7, "eval_0")
    assert (value.image.height, value.image.width) == (5, 7)
    decoded = Image.open(io.BytesIO(value.image.encoded_image_string))
    np.testing.assert_array_equal(decoded, PIXELS)


def test_a_table_by_class():
    table = {
        "road": {"IoU": 0.98765, "Acc": 1.0},
        "traffic light": {"IoU": 0.0, "Acc": None},
        "a\nb": {"IoU": None, "Acc": None},
    }
    assert table_text(table).split("\n") == [
        "                 IoU     Acc",
        "road           98.77  100.00",
        "traffic light   0.00       -",
        "a\\nb               -       -",
    ]


def test_the_protocol_is_beside_the_scores(tmp_path, capsys):
    with Reporter(tmp_path, 0, 10) as reporter:
        scores = {"eval/mIoU": 0.5, "eval/examples": 4, "few/top1": 0.25}
        reporter.scalars(5, scores, {"eval": "whole, single scale"})
        reporter.pictures(5, {"eval_0": PIXELS})
    out = capsys.readouterr().out
    assert "eval  mIoU 50.00%  (whole, single scale)  few  top-1 25.00%" in out
    assert (tmp_path / "pictures" / "eval_0.png").exists()
