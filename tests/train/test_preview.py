"""The contact sheet shows what a step is given."""

import itertools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from tests.helpers import data_mesh
from tests.train import tiny
from tests.train.conftest import REPOSITORY
from train import preview
from train.engine import parallel
from train.engine.step import TrainState, make_train_step
from train.errors import RunError
from train.tasks import classification

PLAIN = {
    "data.rand_augment": "none",
    "augmentation.mixup_alpha": 0.0,
    "augmentation.cutmix_alpha": 0.0,
    "augmentation.erasing_probability": 0.0,
    "accumulation": 1,
}


def configuration(data_dir, **fields):
    """Without augmentation, but for the fields."""
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    config.update_from_flattened_dict({**PLAIN, **fields})
    return config


def augmented(data_dir, **fields):
    paper = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "erasing_probability": 0.25}
    sections = {f"augmentation.{name}": value for name, value in paper.items()}
    return configuration(data_dir, **sections, **fields)


def places(sheet, tile):
    """Where in (H, W, 3) the pixels (h, w, 3) are found: rows and columns."""
    h, w, _ = tile.shape
    height, width = sheet.shape[0] - h + 1, sheet.shape[1] - w + 1
    found = np.argwhere(np.ones((height, width), bool))
    for y, x in itertools.product(range(0, h, 16), range(0, w, 16)):
        found = found[(sheet[found[:, 0] + y, found[:, 1] + x] == tile[y, x]).all(-1)]
    return [(y, x) for y, x in found if (sheet[y : y + h, x : x + w] == tile).all()]


def test_a_sheet_of_digits(data_dir, tmp_path):
    """From the command line: without augmentation the pixels are those of the first batch."""
    path = tmp_path / "new" / "sheet.png"
    command = [
        sys.executable, "-m", "train.preview", "--config=tests/train/tiny.py",
        f"--config.data.data_dir={data_dir}", f"--output={path}", "--count=11",
        *(f"--config.{field}={value}" for field, value in PLAIN.items()),
    ]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout
    sheet = np.asarray(Image.open(path).convert("RGB"))
    batch = next(iter(classification.make_task(configuration(data_dir)).training.batches(0)))
    tiles = batch["image"].repeat(7, axis=1).repeat(7, axis=2).repeat(3, axis=3)  # of 112 pixels
    found = [places(sheet, tile) for tile in tiles]
    assert [len(positions) for positions in found] == [1] * 11 + [0] * (len(tiles) - 11)
    # In reading order, in rows of eight, with a caption below each; nothing else is on the sheet.
    found = [positions[0] for positions in found[:11]]
    assert found == sorted(found)
    rows, columns = zip(*found, strict=True)
    assert len(set(rows)) == 2
    assert len(set(columns)) == 8
    for top, left in found:
        caption = sheet[top + 112 : top + 112 + 24, left : left + 112]
        assert 10 < (caption < 128).any(-1).sum() < 400
        sheet = np.array(sheet)
        sheet[top : top + 112 + 24, left : left + 112] = 255
    assert (sheet == 255).all()


@pytest.mark.parametrize(
    ("size", "columns", "width"),
    [((224, 224), 8, 1900), ((512, 1024), 2, 2084), ((640, 1280), 1, 1304), ((20, 3000), 1, 18024)],
)
def test_sheets_of_large_images_are_not_too_wide(size, columns, width):
    """Two crops of 512 pixels beside their masks are in a row, and one of 640."""
    figure = preview.contact_sheet(np.zeros((9, *size, 3), np.uint8), [["a 0.50"]] * 9)
    across, down = np.rint(figure.get_size_inches() * figure.dpi).astype(int)
    assert across == width
    zoom = -(-112 // size[0])
    assert down == 12 + -(-9 // columns) * (zoom * size[0] + 2 * 18 + 12)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_images_are_those_of_the_first_step(data_dir, accumulation):
    """Few are read, and come out as from the whole batch in the step itself."""
    config = augmented(
        data_dir, accumulation=accumulation, seed=3, **{"augmentation.mixup_group_size": 4}
    )
    images, targets, class_names = classification.first_inputs(config, 6)
    assert class_names == tuple("0123456789")
    training = classification.make_task(config).training
    given = []

    class Constant(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return jnp.zeros((len(x), 10)) + self.param("bias", nn.initializers.zeros, (1, 10))

    def loss(forward, key, batch):
        inputs = classification.make_augmentation(config, 10)(key, batch)
        jax.debug.callback(lambda *arrays: given.append(arrays), *inputs, ordered=True)
        return forward(inputs[0]).mean(), {}

    optimizer = optax.sgd(0.1)
    params = {"bias": jnp.zeros((1, 10))}
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params))
    mesh = data_mesh(1)
    step = make_train_step(
        Constant(), optimizer, loss, seed=3, mesh=mesh, accumulation=accumulation
    )
    batch = next(iter(parallel.global_batches(training.batches(0), mesh)))
    jax.block_until_ready(step(state, batch))
    jax.effects_barrier()
    assert len(given) == accumulation
    assert len(given[0][0]) == config.batch_size // accumulation
    np.testing.assert_allclose(images, given[0][0][:6], rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets, given[0][1][:6], rtol=0, atol=1e-6)
    assert (np.sort(targets)[:, -2] > 0.01).any()  # some are mixed


def test_captions():
    names = ["n02123045", "n02442845", "a, b", "long" * 20]

    def of(target):
        return list(classification._captions(np.float32(target), names, 0.025))

    assert of([0.675, 0.275, 0.025, 0.025]) == ["tabby 0.68", "mink 0.28"]
    assert of([0.025, 0.025, 0.925, 0.025]) == ["a, b 0.93"]
    assert of([0.026, 0.025, 0.924, 0.025]) == ["a, b 0.92"]
    assert preview._shortened("long" * 20 + " 0.50", 16) == "longlonglo… 0.50"
    assert preview._shortened("tabby 0.50", 16) == "tabby 0.50"


def test_pixels_are_those_before_normalisation(data_dir):
    """Of all values, in bfloat16 as well; and noise is cut off at black and white."""
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    config = configuration(data_dir, **{"data.mean": (0.5, 0.4, 0.3), "data.std": (0.2, 0.3, 0.1)})
    for dtype, tolerance in (("float32", 0), ("bfloat16", 1)):
        config.model.dtype = dtype
        batch = {"image": values, "label": np.zeros(1, np.int32)}
        images, _ = jax.jit(classification.make_augmentation(config, 10))(jax.random.key(0), batch)
        images = np.asarray(images, np.float32)
        pixels = classification._pixels(images, config.data.mean, config.data.std)
        assert np.abs(pixels.astype(int) - values).max() <= tolerance
    assert set(classification._pixels(np.float32([[[[9], [-9]]]]), (0.5,), (0.2,)).flat) == {0, 255}


def test_what_is_wrong(data_dir, tmp_path):
    with pytest.raises(RunError, match=r"--count=17 .* 16 of a"):
        preview.preview(configuration(data_dir, accumulation=2), 17)
    with pytest.raises(RunError, match=r"There is no folder .*/train"):
        preview.preview(configuration(data_dir, **{"data.folder": str(tmp_path)}), 4)
    with pytest.raises(RunError, match="label_smoothing"):
        preview.preview(configuration(data_dir, label_smoothing=1.0), 4)


@pytest.mark.parametrize("of_targets", [False, True])
def test_inputs_that_are_not_finite(of_targets, data_dir, monkeypatch):
    images, targets = np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 2), np.float32)
    (targets if of_targets else images)[0, 0] = np.nan
    monkeypatch.setattr(classification, "first_inputs", lambda *_: (images, targets, ("a", "b")))
    with pytest.raises(RunError, match="inputs of the first step are NaN or infinite"):
        preview.preview(configuration(data_dir), 1)
