"""The lines of metrics.jsonl."""

import math

from tests.io.test_files import strict
from train.reporting.metric_writers import JsonLines, read_metrics


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path, 0)
    writer.write(1, {"loss": math.nan, "norm": math.inf, "speed": 2.0})
    writer.write(2, {"loss": 0.5})
    writer.close(failed=False)
    again = JsonLines(path, 1)  # which writes the lines that are kept anew
    again.close(failed=False)
    (line,) = path.read_text().splitlines()
    assert strict(line) == {"step": 1, "loss": None, "norm": None, "speed": 2.0}
    (report,) = read_metrics(path)
    assert math.isnan(report["loss"])
    assert math.isnan(report["norm"])
    assert report["step"] == 1
