"""Objects in images: `Detector`, its export, and python -m replk_jax detect."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import replk_jax
from replk_jax.checkpoint import Checkpoint, save
from replk_jax.cli.main import main
from replk_jax.detection.fcos import FCOSHead
from replk_jax.detection.fpn import FPN
from replk_jax.detection.pasting import paste_mask
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.detection.roi_heads import StandardRoIHead
from replk_jax.detection.rpn import RPNHead
from replk_jax.detection.single_stage import SingleStageDetector
from replk_jax.detection.two_stage import TwoStageDetector
from replk_jax.inference.detector import Detector
from replk_jax.vision.base_preprocessing import normalize
from replk_jax.vision.padding import blank_padding
from replk_jax.vision.run_lengths import compressed_run_lengths
from tests.cli.test_images import run
from tests.helpers import ONE_STAGE, TINY, random_variables
from tests.vision.test_images import picture

pytestmark = pytest.mark.usefixtures("printed_warnings")

NAMES = ("cat", "dog", "cow")
PROTOCOL = DetectionProtocol((96, 64), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def network():
    """A Mask R-CNN that is sure of a few objects."""
    backbone = replk_jax.create_model(TINY, num_classes=None, features_only=True)
    head = StandardRoIHead(
        box_size=3, box_fcs=1, box_fc_channels=8, mask_size=3, mask_convs=1, mask_channels=4,
        score_threshold=0.01, max_detections=6,
    )  # fmt: skip
    model = TwoStageDetector(
        backbone=backbone,
        num_classes=3,
        neck=FPN(channels=8),
        rpn_head=RPNHead(channels=4, test_pre_nms=50, test_post_nms=20),
        roi_head=head,
    )
    return model, random_variables(model)


@pytest.fixture(scope="module")
def detector(network):
    return Detector(*network, PROTOCOL, NAMES, batch_size=2)


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, Checkpoint(*network, PROTOCOL, NAMES))
    return path


def images():
    """Two wide ones and a high one, of different sizes."""
    return [picture(150, 90, seed=0), picture(120, 60, seed=2), picture(50, 80, seed=1)]


def test_objects(network, detector):
    """Those of the network itself for the high image; in pixels of the image."""
    model, variables = network
    *_, result = detector(images(), masks=True)
    *_, image = images()
    height, width, _ = image.shape
    resized = PROTOCOL.pixels(image)
    padding = [(0, bucket - side) for bucket, side in zip((96, 64), resized.shape[:2], strict=True)]
    x = normalize(jnp.pad(resized, [*padding, (0, 0)])[None], PROTOCOL.mean, PROTOCOL.std)
    sizes = jnp.array([resized.shape[:2]])
    x = blank_padding(x, sizes)
    assert (np.asarray(x)[0, :, resized.shape[1] :] == 0).all()
    scales = PROTOCOL.scale_factors(height, width)[None]
    wanted = jax.jit(model.apply)(variables, x, sizes=sizes, scales=scales)
    count = int(wanted.count[0])
    assert count >= 2
    assert len(result.boxes) == len(result.names) == count
    # The detector runs the merged network.
    np.testing.assert_allclose(result.boxes, wanted.boxes[0, :count], atol=1e-2)
    np.testing.assert_allclose(result.scores, wanted.scores[0, :count], atol=1e-4)
    np.testing.assert_array_equal(result.classes, wanted.classes[0, :count])
    assert result.names == tuple(NAMES[index] for index in result.classes)
    assert (result.boxes >= 0).all()
    assert (result.boxes <= [width, height, width, height]).all()
    assert result.masks.shape == (count, height, width)
    box = np.asarray(wanted.boxes[0, 0])
    pasted = paste_mask(np.asarray(wanted.masks[0, 0]), box, (height, width))
    assert (result.masks[0] != pasted).mean() < 0.01


def test_compilations():
    """Two shapes, and batches of one and of two, however many sizes the images have."""
    backbone = replk_jax.create_model(ONE_STAGE, num_classes=None, features_only=True)
    model = SingleStageDetector(
        backbone=backbone,
        num_classes=3,
        neck=FPN(channels=4, num_outputs=2),
        bbox_head=FCOSHead(
            channels=4, num_convs=1, num_groups=2, regression_limits=(8.0,), max_detections=3
        ),
    )
    detector = Detector(model, random_variables(model), PROTOCOL, batch_size=2)
    found = detector([picture(40 + 7 * i, 90 - 5 * i, seed=i) for i in range(9)])
    assert detector._program.compilations == 4
    assert all(objects.masks is None for objects in found)
    with pytest.raises(ValueError, match="boxes without masks"):
        detector(images()[0], masks=True)


def test_threshold_and_masks(detector):
    (every,) = detector(images()[0])
    assert every.masks is None
    limit = float(every.scores[1])
    (few,) = detector(images()[0], threshold=limit)
    assert len(few.scores) == np.count_nonzero(every.scores > limit)
    assert detector([]) == []


@pytest.mark.parametrize("module", ["backbone", "roi_head"])
def test_values_that_are_not_finite(network, module):
    """In whatever part of the network."""
    model, variables = network
    params = dict(variables["params"])
    params[module] = jax.tree.map(lambda leaf: leaf * jnp.nan, params[module])
    with pytest.raises(ValueError, match=r"not finite for 1 of 1 images \(index 0\)"):
        Detector(model, {**variables, "params": params}, PROTOCOL)(images()[0])


def test_other_arguments(network, weights):
    model, variables = network
    with pytest.raises(ValueError, match="takes a detection network; got a RepLKNet"):
        Detector(replk_jax.create_model(TINY), {}, PROTOCOL)
    with pytest.raises(ValueError, match="takes a DetectionProtocol; got a Preprocessing"):
        Detector(model, variables, replk_jax.Preprocessing(32))
    with pytest.raises(ValueError, match="3 classes; got 1 names"):
        Detector(model, variables, PROTOCOL, ["cat"])
    with pytest.raises(ValueError, match="preprocessing is unknown"):
        Detector(model, variables, None)
    assert Detector.from_file(weights).class_names == NAMES


def test_export(network, weights, tmp_path):
    """The program is the detector, for images that need no resizing and any size of the batch."""
    out = tmp_path / "out"
    main(["export", str(weights), str(out), "--image-size", "60", "90", "--platforms", "cpu"])
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    both = np.stack([picture(90, 60, seed=3), picture(90, 60, seed=4)])
    protocol = DetectionProtocol((90, 60), mean=PROTOCOL.mean, std=PROTOCOL.std)
    wanted = Detector(*network, protocol, NAMES, batch_size=2)(both)
    found = jax.jit(program.call)(both)
    assert found["masks"].shape == (2, 6, 6, 6)
    for index, objects in enumerate(wanted):
        count = int(found["count"][index])
        assert count == len(objects.boxes) > 0
        np.testing.assert_allclose(found["boxes"][index, :count], objects.boxes, atol=1e-2)
        np.testing.assert_allclose(found["scores"][index, :count], objects.scores, atol=1e-4)
        np.testing.assert_array_equal(found["classes"][index, :count], objects.classes)
    description = json.loads((tmp_path / "out.json").read_text())
    named = {each.pop("name"): each for each in description["program"]["outputs"]}
    assert named.keys() == found.keys()
    assert named["boxes"] == {"shape": ["batch", 6, 4], "dtype": "float32"}


# --- The command line ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, image in zip(("000000000139", "12", "7"), images(), strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def test_command(weights, folder, tmp_path, capsys):
    output, results = tmp_path / "out", tmp_path / "results.json"
    options = ["--weights", weights, "--output", output, "--json", results, "--threshold", 0.1]
    options += ["--batch-size", 2]
    status, out, err = run(capsys, "detect", folder, *options)
    assert (status, err) == (0, f"preprocessing: {PROTOCOL.in_words()}\n")
    listed = json.loads(results.read_text())
    detector = Detector.from_file(weights, batch_size=2)
    wanted = []
    paths = sorted(folder.iterdir())
    for path, found in zip(paths, detector(paths, threshold=0.1, masks=True), strict=True):
        drawn = output / f"{path.stem}_objects.jpg"
        assert f"{path} -> {drawn}" in out
        with Image.open(drawn) as opened, Image.open(path) as original:
            assert opened.size == original.size
        for box, score, index, mask in zip(
            found.boxes, found.scores, found.classes, found.masks, strict=True
        ):
            x1, y1, x2, y2 = box.tolist()
            wanted.append({
                "image_id": int(path.stem), "category_id": index + 1, "score": score,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": compressed_run_lengths(mask),
                "category": NAMES[index], "image": str(path),
            })  # fmt: skip
    assert len(listed) == len(wanted) > 2
    for ours, theirs in zip(listed, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("image_id", "category_id", "category", "image"):
            assert ours[name] == theirs[name]
        np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=1e-2)
        np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-4)
    status, _, err = run(capsys, "detect", folder, *options)
    assert status == 2
    assert "--force" in err


def test_images_that_cannot_be_read(weights, folder, capsys):
    """They are named and left out."""
    (folder / "broken.png").write_bytes(b"no image")
    options = ["--weights", weights, "--threshold", 0.99, "--batch-size", 2]
    status, out, err = run(capsys, "detect", folder, *options)
    assert status == 1
    assert "broken.png" in err
    assert "no objects" in out
