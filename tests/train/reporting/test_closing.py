"""The summary at the end of a run."""

from train.reporting.closing import closing_summary
from train.reporting.reporter import Reporter


class NoCheckpoints:
    def latest(self):
        return None

    def best(self):
        return None

    def path(self, step):
        raise AssertionError(step)


def test_the_protocol_is_beside_every_score(tmp_path):
    both = {
        "training": {"mIoU": 0.5, "examples": 4},
        "merged": {"mIoU": 0.25},
        "largest_difference": 1e-6,
    }
    result = {**both, "ema": both, "best_by": "mIoU", "protocol": "whole, single scale"}
    result["evaluations"] = {
        "eval_more": {
            "training": {"mIoU": 0.75, "examples": 2},
            "not_merged": "reason",
            "protocol": "whole, flip",
        }
    }
    reporter = Reporter(tmp_path, 0, 1, active=False)
    lines = closing_summary(result, NoCheckpoints(), reporter).splitlines()
    scores = [line for line in lines if "mIoU" in line]
    assert len(scores) == 5
    for line in scores[:4]:
        assert " (whole, single scale)" in line
    assert scores[4] == "eval_more         mIoU 75.00% of 2 images (whole, flip)"
    assert "re-parameterized  not possible: reason" in lines
