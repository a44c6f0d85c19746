"""Learning rates against the formulas of the official hooks, step by step."""

import json
import math

import jax
import numpy as np
import pytest

from tests import reference_data
from train.engine.schedules import make_schedule, warmup_cosine

BASE = 0.01


def rates(schedule, steps):
    return np.asarray(jax.vmap(schedule)(np.asarray(steps)))


# mmcv's hooks in float64: the regular rate at a step, and the warm-up that multiplies it.


def mmcv_polynomial(step, total, power, least):
    return (BASE - least) * (1 - step / total) ** power + least


def mmcv_step(step, milestones, gamma):
    passed = len(milestones)
    for number, milestone in enumerate(milestones):
        if step < milestone:
            passed = number
            break
    return BASE * gamma**passed


def mmcv_warmup(step, regular, kind, length, ratio):
    if step >= length:
        return regular
    if kind == "constant":
        return regular * ratio
    return regular * (1 - (1 - step / length) * (1 - ratio))


WARMUPS = [
    ("linear", 0, 0.0),
    ("linear", 7, 0.0),
    ("linear", 10, 1e-3),
    ("linear", 1, 1e-6),
    ("constant", 6, 1 / 3),
]
STEPS = range(40)


@pytest.mark.parametrize(("warmup", "length", "ratio"), WARMUPS)
@pytest.mark.parametrize(("power", "least"), [(1.0, 0.0), (0.9, 1e-4), (2.0, 1e-3)])
def test_polynomial(power, least, warmup, length, ratio):
    schedule = make_schedule(
        "polynomial", peak_lr=BASE, total_steps=40, final_lr=least, power=power,
        warmup=warmup, warmup_steps=length, warmup_from=ratio,
    )  # fmt: skip
    expected = [
        mmcv_warmup(step, mmcv_polynomial(step, 40, power, least), warmup, length, ratio)
        for step in STEPS
    ]
    np.testing.assert_allclose(rates(schedule, STEPS), expected, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "length", "ratio"), WARMUPS)
@pytest.mark.parametrize(("milestones", "gamma"), [((27, 33), 0.1), ((5, 20, 39), 0.5), ((3,), 1)])
def test_steps(milestones, gamma, warmup, length, ratio):
    schedule = make_schedule(
        "step", peak_lr=BASE, total_steps=40, milestones=milestones, milestone_factor=gamma,
        warmup=warmup, warmup_steps=length, warmup_from=ratio,
    )  # fmt: skip
    expected = [
        mmcv_warmup(step, mmcv_step(step, milestones, gamma), warmup, length, ratio)
        for step in STEPS
    ]
    np.testing.assert_allclose(rates(schedule, STEPS), expected, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "length", "ratio"), WARMUPS)
def test_constant(warmup, length, ratio):
    schedule = make_schedule(
        "constant", peak_lr=BASE, total_steps=40,
        warmup=warmup, warmup_steps=length, warmup_from=ratio,
    )  # fmt: skip
    expected = [mmcv_warmup(step, BASE, warmup, length, ratio) for step in STEPS]
    np.testing.assert_allclose(rates(schedule, STEPS), expected, rtol=1e-6)


@pytest.mark.parametrize(("kind", "ratio"), [("linear", 0.2), ("constant", 0.2)])
def test_cosine_with_other_warm_ups(kind, ratio):
    """mmengine's: both ends are included, and the cosine starts after the warm-up."""
    length, total, least = 5, 40, 1e-3
    schedule = make_schedule(
        "cosine", peak_lr=BASE, total_steps=total, final_lr=least,
        warmup=kind, warmup_steps=length, warmup_from=ratio,
    )  # fmt: skip
    rise = np.linspace(ratio, 1, length) if kind == "linear" else np.full(length, ratio)
    angles = math.pi * np.arange(total - length) / (total - length)
    cosine = least + (BASE - least) * (1 + np.cos(angles)) / 2
    np.testing.assert_allclose(rates(schedule, range(total)), [*(BASE * rise), *cosine], rtol=1e-5)


# The arguments of the recipes in the reference data; detection has epochs of 300 steps there.
SEGMENTATION = {"name": "polynomial", "warmup_from": 1e-6}
CASCADE = {"warmup_steps": 500, "warmup_from": 1e-3, "milestones": (8100, 9900)}
FCOS = {"warmup": "constant", "warmup_steps": 500, "warmup_from": 1 / 3}
RECIPES = {
    "seg_31b_40k": {**SEGMENTATION, "warmup_steps": 400, "total_steps": 40_000},
    "seg_cityscapes_20k": {**SEGMENTATION, "warmup_steps": 400, "total_steps": 20_000},
    "seg_31l_80k": {**SEGMENTATION, "warmup_steps": 800, "total_steps": 80_000},
    "seg_xl_160k": {**SEGMENTATION, "warmup_steps": 1500, "total_steps": 160_000},
    "cascade_36_epochs": {"name": "step", **CASCADE, "total_steps": 10_800},
    "fcos_24_epochs": {"name": "step", **FCOS, "milestones": (4800, 6600), "total_steps": 7200},
    "mmseg_sgd_80k": {"name": "polynomial", "power": 0.9, "final_lr": 1e-4, "total_steps": 80_000},
}


@reference_data.required
@pytest.mark.parametrize("recipe", RECIPES)
def test_rates_of_the_downstream_recipes(recipe):
    path = reference_data.ROOT / "downstream/transforms/learning_rates.json"
    case = json.loads(path.read_text())[recipe]
    schedule = make_schedule(peak_lr=case["base"], **RECIPES[recipe])
    steps, expected = zip(*case["rates"], strict=True)
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-5)


@reference_data.required
@pytest.mark.parametrize("name", ["lr with warm-up epochs", "lr with warm-up steps", "no warm-up"])
def test_cosine_is_the_official_one(name):
    """Every value; 1e-6 of the peak is float32's rounding."""
    case = json.loads((reference_data.ROOT / "training/cosine_schedules.json").read_text())[name]
    arguments, expected = case["arguments"], np.array(case["values"])
    per_epoch = arguments["niter_per_ep"]
    warmup = arguments.get("warmup_steps", arguments.get("warmup_epochs", 0) * per_epoch)
    schedule = warmup_cosine(
        arguments["base_value"], arguments["final_value"], warmup, arguments["epochs"] * per_epoch
    )
    actual = [float(schedule(step)) for step in range(len(expected))]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * arguments["base_value"])


@pytest.mark.parametrize("name", ["cosine", "polynomial"])
def test_schedules_stay_at_their_end(name):
    schedule = make_schedule(name, peak_lr=1.0, final_lr=0.1, warmup_steps=2, total_steps=10)
    assert float(schedule(10)) == float(schedule(50)) == pytest.approx(0.1)


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match=r"one of cosine, .*; got 'linear'"):
        make_schedule("linear", peak_lr=1.0, total_steps=10)
