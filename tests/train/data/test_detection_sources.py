"""Images with annotated objects from JSON and XML files, and from TensorFlow Datasets."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs.detection.data import data_fields
from replk_jax.vision.images import ImageError
from tests.reference_data import ROOT, required
from tests.train import detection_sets
from train.data import coco_masks, detection_sources
from train.data.coco_truth import coco_truth
from train.data.detection_examples import DetectionExamples
from train.data.detection_records import prepare_objects
from train.data.detection_sources import find_objects, open_detection_source, split_names
from train.data.sources import prepare
from train.errors import RunError

SIZES = ((40, 56), (56, 40))
TRANSFORMS = ROOT / "downstream/transforms"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("detection") / "set"
    return detection_sets.write_coco(root, {"train": 9, "val": 4}, SIZES)


def write(root, content, split="train"):
    """A folder with these annotations, and without images."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / f"annotations/instances_{split}.json").write_text(text)
    return detection_sets.data(root)


def small(**changes):
    """A valid file with an image and an object."""
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 56}],
        "annotations": [
            {"id": 3, "image_id": 1, "category_id": 7, "bbox": [1, 2, 30.5, 20], "area": 400}
        ],
        "categories": [{"id": 7, "name": "dog"}],
        **changes,
    }


def annotation(**changes):
    return {**small()["annotations"][0], **changes}


def test_the_fields_have_the_places_of_coco():
    fields = data_fields()
    assert fields["annotations"] == detection_sources.COCO_ANNOTATIONS
    assert fields["images"] == detection_sources.COCO_IMAGES


def test_coco_files(folder):
    source = open_detection_source(detection_sets.data(folder), "train")
    content = json.loads((folder / "annotations/instances_train.json").read_text())
    assert source.class_names == ("square", "disc")
    assert source.category_ids == (7, 3)
    assert source.has_masks
    assert len(source) == 9
    assert source.table.image_ids.tolist() == [image["id"] for image in content["images"]]
    examples = DetectionExamples(source, np.arange(9), np.ones(len(source.table.ids), bool), True)
    for index, image in enumerate(content["images"]):
        of_image = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        example = examples[index]
        path = folder / "train" / image["file_name"]
        assert example["origin"] == str(path)
        assert example["image"] == path.read_bytes()
        assert example["size"] == (image["height"], image["width"])
        assert example["image_id"] == image["id"]
        assert example["classes"].tolist() == [(7, 3).index(a["category_id"]) for a in of_image]
        x, y, w, h = np.array([a["bbox"] for a in of_image]).reshape(-1, 4).T
        np.testing.assert_array_equal(example["boxes"], np.stack([x, y, x + w, y + h], axis=1))
        for number, a in zip(example["numbers"].tolist(), of_image, strict=True):
            found = example["masks"].bitmap(number, *example["size"])
            np.testing.assert_array_equal(
                found, coco_masks.to_bitmap(a["segmentation"], *example["size"])
            )
    assert sum(not len(examples[index]["boxes"]) for index in range(9)) == 1


def test_the_truth_is_that_of_the_file(folder):
    source = open_detection_source(detection_sets.data(folder), "val")
    truth = coco_truth(source, masks=True)
    content = json.loads((folder / "annotations/instances_val.json").read_text())
    assert truth["categories"] == content["categories"]
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    assert {image["id"]: (image["height"], image["width"]) for image in truth["images"]} == sizes
    assert len(truth["annotations"]) == len(content["annotations"])
    for ours, theirs in zip(truth["annotations"], content["annotations"], strict=True):
        for key in ("image_id", "category_id", "bbox", "area", "iscrowd"):
            assert ours[key] == theirs[key]
        assert ours["segmentation"] == coco_masks.to_run_lengths(
            theirs["segmentation"], *sizes[theirs["image_id"]]
        )
    assert "segmentation" not in coco_truth(source, masks=False)["annotations"][0]


@required
@pytest.mark.parametrize("setting", ["filter_empty_gt", "keep_empty"])
def test_which_images_and_objects_are_trained_on(tmp_path, setting):
    content = json.loads((TRANSFORMS / "coco_filter_truth.json").read_text())
    expected = json.loads((TRANSFORMS / "coco_filter_expected.json").read_text())
    data = write(tmp_path, content)
    (tmp_path / "classes.txt").write_text("\n".join(expected["classes_asked_for"]))
    source = open_detection_source({**data, "classes": str(tmp_path / "classes.txt")}, "train")
    assert list(source.category_ids) == expected["category_of_label"]
    assert source.class_names == ("dog", "cat", "person")
    examples = DetectionExamples.to_train_on(
        source, filter_empty=setting == "filter_empty_gt", masks=True, max_objects=5
    )
    table = examples.table
    assert table.image_ids.tolist() == [image["image_id"] for image in expected[setting]]
    of_image = {image_id: i for i, image_id in enumerate(source.table.image_ids.tolist())}
    for index, image in enumerate(expected[setting]):
        objects, (height, width) = table.objects(index), table.size(index)
        x, y, w, h = objects.boxes.T
        assert np.stack([x, y, x + w, y + h], axis=1).tolist() == image["boxes"]
        assert objects.classes.tolist() == image["labels"]
        assert (width > height) == image["group"]
        everything = source.table.objects(of_image[image["image_id"]])
        crowds = everything.boxes[everything.crowd]
        assert [[x, y, x + w, y + h] for x, y, w, h in crowds.tolist()] == image["ignore_boxes"]
        for number, kind in zip(objects.numbers, objects.classes, strict=True):
            assert everything.classes[number] == kind


def test_more_objects_than_asked_for_are_announced(tmp_path, capsys):
    boxes = [[i % 40, i % 30, 2 + i % 5, 3] for i in range(500)]
    many = [annotation(id=i + 1, bbox=box) for i, box in enumerate(boxes)]
    source = open_detection_source(write(tmp_path, small(annotations=many)), "train")
    examples = DetectionExamples.to_train_on(
        source, filter_empty=True, masks=False, max_objects=100
    )
    assert examples.table.counts.tolist() == [500]
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 images have more than config.data.max_objects = 100 objects, up to 500" in line
    DetectionExamples.to_train_on(source, filter_empty=True, masks=False, max_objects=500)
    assert capsys.readouterr().err == ""


def test_a_set_without_images_to_train_on(tmp_path):
    source = open_detection_source(write(tmp_path, small(annotations=[])), "train")
    with pytest.raises(RunError, match="no images that can be used"):
        DetectionExamples.to_train_on(source, filter_empty=True, masks=False, max_objects=1)
    kept = DetectionExamples.to_train_on(source, filter_empty=False, masks=False, max_objects=1)
    assert len(kept) == 1
    with pytest.raises(RunError, match=r"no masks of objects: set config.data.masks=False"):
        DetectionExamples.to_train_on(source, filter_empty=False, masks=True, max_objects=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"instances_train.json is no JSON, or not the whole of it"),
        ("\x00", r"no JSON"),
        ("[" * 100_000, r"nested too deeply"),
        ([], r"no list of images and of annotations and of categories"),
        ({"images": [], "annotations": {}, "categories": []}, r"no list of annotations\."),
        (small(categories=[]), r"has no categories"),
        (small(categories=[{"id": 7}]), r"the category at position 0 has no valid name"),
        (
            small(categories=[{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]),
            r"two categories with the id 7",
        ),
        (
            small(categories=[{"id": 7, "name": "a"}, {"id": 8, "name": "a"}]),
            r"two categories with the name 'a'",
        ),
        (small(images=[{"id": 1}]), r"the image at position 0 has no valid file_name"),
        (
            small(images=[{"id": 1, "file_name": "a", "height": 0, "width": 4}]),
            r"the image a has the height 0",
        ),
        (small(images=small()["images"] * 2), r"a\.png and a\.png have the same id 1"),
        (small(annotations=[annotation(category_id=8)]), r"annotation 3 has the category 8"),
        (small(annotations=[annotation(), annotation()]), r"several annotations have the id 3"),
        (small(annotations=[annotation(bbox=[1, 2, 3])]), r"annotation 3 has no bbox of four"),
        (small(annotations=[annotation(bbox=[1, 2, 3, float("nan")])]), r"no bbox of four"),
        (small(annotations=[annotation(bbox=[1, 2, 3, 10**400])]), r"no bbox of four"),
        (small(annotations=[annotation(id=2**63)]), r"has an id that is no number"),
        (small(annotations=[annotation(area="big")]), r"area that is no number: 'big'"),
        (small(annotations=[annotation(image_id=None)]), r"no valid image_id or category_id"),
        (small(annotations=["it"]), r"annotation at position 0 is no dictionary: 'it'"),
        (
            small(annotations=[annotation(category_id=8), "it"]),
            r"There are 1 more problems\. python -m train.check lists all",
        ),
    ],
)
def test_broken_files(tmp_path, content, message):
    with pytest.raises(RunError, match=message):
        open_detection_source(write(tmp_path, content), "train")


def test_annotations_of_missing_images_are_left_out(tmp_path, capsys):
    data = write(tmp_path, small(annotations=[annotation(), annotation(id=4, image_id=9)]))
    source = open_detection_source(data, "train")
    assert source.table.ids.tolist() == [3]
    assert "annotation 4 is of the image 9" in capsys.readouterr().err
    (problem,) = find_objects(data, "train").problems
    assert (problem.severity, problem.kind) == ("warning", "annotation of a missing image")


def test_ids_of_images_that_devices_cannot_hold(tmp_path):
    for number in (2**31, "one"):
        content = small(
            images=[{**small()["images"][0], "id": number}],
            annotations=[annotation(image_id=number)],
        )
        source = open_detection_source(write(tmp_path, content), "train")
        assert source.table.image_ids.tolist() == [1]
        assert coco_truth(source, masks=False)["annotations"][0]["image_id"] == 1


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "has no polygon"),
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5, 10**400]], "a list of numbers"),
        ({"size": [40, 56], "counts": [40 * 56 + 1]}, "2241 pixels in all"),
        ({"size": [56, 40], "counts": [40 * 56]}, r"of the size \[56, 40\]"),
        ("it", "list of polygons"),
    ],
)
def test_masks_that_do_not_fit(tmp_path, segmentation, message):
    others = annotation(id=4, segmentation=[[0, 0, 9, 0, 9, 9]])
    content = small(annotations=[annotation(segmentation=segmentation), others])
    data = write(tmp_path, content)
    (tmp_path / "train/a.png").write_bytes(detection_sets.png(np.zeros((40, 56, 3), np.uint8)))
    source = open_detection_source(data, "train")
    examples = DetectionExamples.to_evaluate_on(source)
    assert len(examples[0]["boxes"]) == 2
    masks = source.reader.read(0).masks
    with pytest.raises(ImageError, match=rf"a\.png: the mask of object 1 .*{message}"):
        masks.bitmap(0, 40, 56)
    assert masks.bitmap(1, 40, 56).sum() > 20


def test_the_truth_does_not_read_images(folder, tmp_path):
    """Of a folder, masks are in the annotations."""
    source = open_detection_source(detection_sets.data(folder), "val")
    copy = tmp_path / "set"
    shutil.copytree(folder / "annotations", copy / "annotations")
    (copy / "val").mkdir()
    without_images = open_detection_source(detection_sets.data(copy), "val")
    assert coco_truth(without_images, masks=True) == coco_truth(source, masks=True)


def test_missing_files(tmp_path, folder):
    data = detection_sets.data(folder)
    with pytest.raises(RunError, match=r"no file .*instances_test.json .* splits are train, val"):
        open_detection_source(data, "test")
    with pytest.raises(RunError, match=r"no folder .*/nowhere .*config.data.images"):
        open_detection_source({**data, "images": "nowhere"}, "train")
    with pytest.raises(RunError, match=r"path in which \{split\} is the name"):
        open_detection_source({**data, "annotations": "a.json"}, "train")
    with pytest.raises(RunError, match="coco, voc_xml; got 'csv'"):
        open_detection_source({**data, "format": "csv"}, "train")
    with pytest.raises(RunError, match=r"set config.data.folder"):
        open_detection_source({**data, "folder": None, "format": "coco"}, "train")
    (tmp_path / "classes.txt").write_text("disc\ncube")
    with pytest.raises(RunError, match=r"does not have: cube\. It has square, disc"):
        open_detection_source({**data, "classes": str(tmp_path / "classes.txt")}, "train")
    source = open_detection_source(write(tmp_path, small()), "train")
    with pytest.raises(ImageError, match=r"train/a\.png"):
        source.reader.read(0)


def test_splits(folder):
    assert split_names(detection_sets.data(folder)) == ("train", "val")
    other = {**detection_sets.data(folder), "annotations": "{split}/x.json"}
    with pytest.raises(RunError, match=r"has no splits: expected files"):
        split_names(other)


VOC = """<annotation><filename>{name}.png</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}
</annotation>"""
VOC_OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def write_voc(root, objects, size=(40, 56)):
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("2007_000001\nplain.name\n")
    (root / "ImageSets/Main/cat_train.txt").write_text("2007_000001 -1\n")
    for name, some in (("2007_000001", objects), ("plain.name", [])):
        Image.new("RGB", size[::-1]).save(root / f"JPEGImages/{name}.png")
        text = "".join(VOC_OBJECT.format(*values) for values in some)
        (root / f"Annotations/{name}.xml").write_text(
            VOC.format(name=name, width=size[1], height=size[0], objects=text)
        )
    return {**detection_sets.data(root), "format": "voc_xml", "masks": False}


def test_voc_files(tmp_path):
    data = write_voc(tmp_path, [("cat", 0, 1, 1, 56, 40), ("dog", 1, 10.5, 3, 20, 30)])
    source = open_detection_source(data, "train")
    assert len(source.class_names) == 20
    assert source.class_names[source.table.classes[0]] == "cat"
    assert source.table.boxes.tolist() == [[0, 0, 56, 40], [9.5, 2, 10.5, 28]]
    assert source.table.crowd.tolist() == [False, True]
    assert source.table.sizes.tolist() == [[40, 56]] * 2
    assert source.table.counts.tolist() == [2, 0]
    examples = DetectionExamples.to_train_on(source, filter_empty=True, masks=False, max_objects=9)
    (index,) = range(len(examples))
    assert examples[index]["boxes"].tolist() == [[0, 0, 56, 40]]
    assert examples[index]["image"] == (tmp_path / "JPEGImages/2007_000001.png").read_bytes()
    assert split_names(data) == ("train",)


@pytest.mark.parametrize(
    ("objects", "size", "message"),
    [
        ([("cube", 0, 1, 1, 5, 5)], (40, 56), r"unknown class 'cube'; the classes are aeroplane"),
        ([("cat", 0, "left", 1, 5, 5)], (40, 56), r"bndbox/xmin is no number, but 'left'"),
        ([("cat", 0, 1, 1, 5, "")], (40, 56), r"bndbox/ymax is no number"),
        ([("cat & dog", 0, 1, 1, 5, 5)], (40, 56), r"is no XML, or not the whole of it"),
    ],
)
def test_broken_voc_files(tmp_path, objects, size, message):
    with pytest.raises(RunError, match=message):
        open_detection_source(write_voc(tmp_path, objects, size), "train")


def test_missing_voc_files(tmp_path):
    data = write_voc(tmp_path, [("cube", 0, 1, 1, 5, 5)])
    (tmp_path / "classes.txt").write_text("cube\n")
    assert open_detection_source(data, "train").class_names == ("cube",)
    with pytest.raises(RunError, match=r"no list .*val\.txt\. The splits are train\."):
        open_detection_source(data, "val")
    (tmp_path / "Annotations/plain.name.xml").unlink()
    with pytest.raises(RunError, match=r"plain\.name\.xml cannot be read"):
        open_detection_source(data, "train")
    with pytest.raises(RunError, match=r"no folder .*Annotations"):
        open_detection_source({**data, "folder": str(tmp_path / "JPEGImages")}, "train")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The first images of the scattered digits."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.data.scattered_digits.COUNTS", {"train": 6, "test": 2})
        prepare({"name": "scattered_digits", "data_dir": str(folder), "folder": None})
    return {
        **detection_sets.data(None), "folder": None, "name": "scattered_digits",
        "data_dir": str(folder),
    }  # fmt: skip


def test_scattered_digits(digits):
    """Boxes are tight around the masks of the digits."""
    source = open_detection_source(digits, "train")
    assert source.class_names[3] == "three"
    assert source.has_masks
    examples = DetectionExamples.to_train_on(source, filter_empty=True, masks=True, max_objects=9)
    assert len(examples) == 6
    assert {examples[index]["size"] for index in range(6)} == {(96, 96), (96, 128), (128, 96)}
    for index in range(6):
        example = examples[index]
        areas = source.table.objects(index).areas
        assert 2 <= len(example["boxes"]) <= 6
        for number, box in zip(example["numbers"].tolist(), example["boxes"], strict=True):
            mask = example["masks"].bitmap(number, *example["size"])
            ys, xs = np.nonzero(mask)
            tight = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            # Fractions are stored in float32.
            np.testing.assert_allclose(box, tight, rtol=0, atol=1e-4)
            assert mask.sum() == areas[number]
    truth = coco_truth(source, masks=True)
    first = truth["annotations"][0]
    bitmap = coco_masks.to_bitmap(first["segmentation"], *examples[0]["size"])
    assert bitmap.sum() == first["area"]
    assert {image["id"] for image in truth["images"]} == set(range(1, 7))


def test_records_that_are_not_for_detection(data_dir):
    data = {**detection_sets.data(None), "folder": None, "name": "digits"}
    with pytest.raises(RunError, match="not a detection set"):
        open_detection_source({**data, "data_dir": str(data_dir)}, "train")


class Voc(tfds.core.GeneratorBasedBuilder):
    """Features as those of TensorFlow Datasets' `voc`."""

    VERSION = tfds.core.Version("1.0.0")
    name = "voc_like"

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "image/filename": tfds.features.Text(),
                    "objects": tfds.features.Sequence(
                        {
                            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                            "bbox": tfds.features.BBoxFeature(),
                            "pose": tfds.features.ClassLabel(names=["front"]),
                            "is_truncated": np.bool_,
                            "is_difficult": np.bool_,
                        }
                    ),
                    "labels": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(3):
            objects = [
                {
                    "label": i, "pose": 0, "is_truncated": False, "is_difficult": i == 1,
                    "bbox": tfds.features.BBox(ymin=0.25, xmin=0.5, ymax=0.75, xmax=1.0),
                }
                for i in range(number)
            ]  # fmt: skip
            yield number, {
                "image": Image.new("RGB", (64, 40)), "image/filename": f"{number}.jpg",
                "objects": objects, "labels": [],
            }  # fmt: skip


def test_records_like_those_of_voc(tmp_path):
    Voc(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    data = {**detection_sets.data(None), "folder": None, "name": "voc_like", "masks": False}
    source = open_detection_source({**data, "data_dir": str(tmp_path)}, "train")
    table = source.table
    assert table.sizes.tolist() == [[40, 64]] * 3
    assert sorted(table.counts.tolist()) == [0, 1, 2]
    assert table.boxes.tolist() == [[32, 10, 32, 20]] * 3
    assert table.areas.tolist() == [640] * 3
    two = int(np.argmax(table.counts))
    assert table.objects(two).crowd.tolist() == [False, True]
    assert not source.has_masks


def test_prepared_sets_have_the_same_examples(folder, tmp_path):
    """All of it, with boxes to the bit, for JSON files."""
    data = detection_sets.data(folder)
    place = prepare_objects(data, "shapes", tmp_path, processes=1)
    assert place.parent.name == "shapes"
    prepared = {**data, "folder": None, "name": "shapes", "data_dir": str(tmp_path)}
    for split in ("train", "val"):
        ours = open_detection_source(prepared, split)
        theirs = open_detection_source(data, split)
        assert ours.class_names == theirs.class_names
        assert ours.has_masks
        order = {image_id: i for i, image_id in enumerate(theirs.table.image_ids.tolist())}
        assert sorted(ours.table.image_ids.tolist()) == sorted(order)
        some, others = (
            DetectionExamples.to_train_on(s, filter_empty=False, masks=True, max_objects=9)
            for s in (ours, theirs)
        )
        for index, image_id in enumerate(ours.table.image_ids.tolist()):
            one, other = some[index], others[order[image_id]]
            assert one["image"] == other["image"]
            assert one["origin"].endswith(f"({other['origin'].rsplit('/')[-1]})")
            for key in ("boxes", "classes", "numbers", "size", "image_id"):
                np.testing.assert_array_equal(one[key], other[key])
            for number in one["numbers"].tolist():
                np.testing.assert_array_equal(
                    *(e["masks"].bitmap(number, *one["size"]) for e in (one, other))
                )
            for field in ("areas", "crowd"):
                np.testing.assert_array_equal(
                    getattr(ours.table.objects(index), field),
                    getattr(theirs.table.objects(order[image_id]), field),
                )


def test_boxes_that_leave_the_image_are_prepared_as_they_are(tmp_path):
    objects = [
        annotation(bbox=box, id=i + 1) for i, box in enumerate(([-9, -5, 30, 90], [50, 4, -3, 5]))
    ]
    data = write(tmp_path / "set", small(annotations=objects))
    image = tmp_path / "set/train/a.png"
    image.write_bytes(detection_sets.png(np.zeros((40, 56, 3), np.uint8)))
    prepare_objects(data, "boxes", tmp_path)
    prepared = {**data, "folder": None, "name": "boxes", "data_dir": str(tmp_path)}
    source = open_detection_source({**prepared, "masks": False}, "train")
    assert source.table.boxes.tolist() == [[-9, -5, 30, 90], [50, 4, -3, 5]]
    assert source.table.areas.tolist() == [400, 400]
    # An image of another size than its annotations is found before training.
    image.write_bytes(detection_sets.png(np.zeros((56, 40, 3), np.uint8)))
    with pytest.raises(RunError, match=r"a\.png has 40 x 56 pixels"):
        prepare_objects(data, "turned", tmp_path)


def test_records_with_images_that_cannot_be_read(tmp_path, capsys):
    folder = detection_sets.write_coco(tmp_path / "set", {"train": 3}, SIZES)
    (folder / "train/001.png").write_bytes(b"no image")
    data = detection_sets.data(folder)
    with pytest.raises(RunError, match=r"1 images cannot be read.*\n.*001\.png"):
        prepare_objects(data, "broken", tmp_path)
    prepare_objects(data, "broken", tmp_path, keep_unreadable=True)
    prepared = {**data, "folder": None, "name": "broken", "data_dir": str(tmp_path)}
    with pytest.raises(RunError, match=r"001\.png.*data\.unreadable=replace"):
        open_detection_source(prepared, "train")
    source = open_detection_source({**prepared, "unreadable": "replace"}, "train")
    assert sorted(source.table.image_ids.tolist()) == [10, 16]
    assert "001.png" in capsys.readouterr().err
    examples = DetectionExamples.to_evaluate_on(source)
    for index in range(2):
        name = f"{(int(examples[index]['image_id']) - 10) // 3:03}.png"
        assert examples[index]["image"] == (folder / "train" / name).read_bytes()
        assert source.reader.origin(index).endswith(f"({name})")
