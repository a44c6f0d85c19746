"""Where images with masks come from."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from replk_jax.vision import label_sets
from replk_jax.vision.images import ImageError
from replk_jax.vision.label_sets import LabelSet
from train.data.masks import decode_pair
from train.data.segmentation_folders import find_pairs
from train.data.segmentation_sources import open_segmentation_source
from train.data.segmentation_transforms import SegmentationTransform
from train.data.splits import Reading, TrainingSplit
from train.errors import RunError

FIELDS = {
    "name": "none",
    "data_dir": None,
    "folder": None,
    "format": None,
    "image_suffix": None,
    "mask_suffix": None,
    "classes": None,
    "reduce_zero_label": None,
}


def config(folder=None, **fields):
    assert fields.keys() <= FIELDS.keys()
    return {**FIELDS, "folder": str(folder) if folder else None, **fields}


def pixels(seed, size=(6, 8)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def classes(seed, count=3, size=(6, 8)):
    return np.random.default_rng(seed).integers(0, count, size, np.uint8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_pairs(root, names, image, mask):
    """Image `i` is `pixels(i)`, and its mask `classes(i)`; `image` and `mask` are patterns."""
    for index, name in enumerate(names):
        write(root / image.format(name), pixels(index))
        write(root / mask.format(name), classes(index))


def write_classes(root, names=("sky", "road", "tree")):
    (root / "classes.txt").write_text("\n".join(names) + "\n")


def origins(source, root):
    found = [source[i] for i in range(len(source))]
    return [
        tuple(str(Path(each[key]).relative_to(root)) for key in ("origin", "mask_origin"))
        for each in found
    ]


LAYOUTS = {
    "images and masks": ("images/train/{}.png", "masks/train/{}.png"),
    "mmsegmentation's": ("img_dir/train/{}.jpg", "ann_dir/train/{}.png"),
    "annotations": ("images/train/{}.png", "annotations/train/{}.png"),
    "by split": ("train/images/{}.jpg", "train/masks/{}.png"),
    "labels": ("train/images/{}.jpg", "train/labels/{}.PNG"),
    "folders in folders": ("images/train/a/{}.png", "masks/train/a/{}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_folders(tmp_path, layout):
    write_pairs(tmp_path, ["c", "a", "b"], *layout)
    write_classes(tmp_path)
    source = open_segmentation_source(config(tmp_path), "train")
    image, mask = layout
    assert origins(source, tmp_path) == [(image.format(n), mask.format(n)) for n in "abc"]
    assert source.label_set.class_names == ("sky", "road", "tree")
    _, decoded = decode_pair(source[0], source.label_set)
    np.testing.assert_array_equal(decoded, classes(1))
    assert source[2]["image"] == (tmp_path / image.format("c")).read_bytes()


@pytest.mark.parametrize(
    "name", ["train.txt", "splits/train.txt", "ImageSets/Segmentation/train.txt"]
)
def test_split_files(tmp_path, name):
    """Names with or without the ending, in any order; other files belong to other splits."""
    write_pairs(tmp_path, ["x", "b", "a", "v1.2"], "images/{}.png", "masks/{}.png")
    write_classes(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("b.png\n\na\nv1.2\na\n")
    source = open_segmentation_source(config(tmp_path), "train")
    assert [image for image, _ in origins(source, tmp_path)] == [
        "images/a.png", "images/b.png", "images/v1.2.png",
    ]  # fmt: skip
    path.write_text("a\ngone\n")
    with pytest.raises(RunError, match=r"Names in its list without an image: 1 \(gone\)"):
        open_segmentation_source(config(tmp_path), "train")


@pytest.mark.parametrize(("asked", "on_disk"), [("validation", "val"), ("train", "training")])
def test_other_names_of_splits(tmp_path, asked, on_disk):
    write_pairs(tmp_path, ["a"], f"images/{on_disk}/{{}}.png", f"masks/{on_disk}/{{}}.png")
    write_classes(tmp_path)
    assert len(open_segmentation_source(config(tmp_path), asked)) == 1
    assert len(open_segmentation_source(config(tmp_path), on_disk)) == 1


def test_suffixes(tmp_path):
    write_pairs(tmp_path, ["a", "b"], "images/train/{}_rgb.png", "masks/train/{}_label.png")
    write_pairs(tmp_path, ["a", "b"], "images/train/{}_depth.png", "masks/train/{}_color.png")
    write_classes(tmp_path)
    fields = {"image_suffix": "_rgb.png", "mask_suffix": "_label.png"}
    source = open_segmentation_source(config(tmp_path, **fields), "train")
    assert origins(source, tmp_path) == [
        (f"images/train/{name}_rgb.png", f"masks/train/{name}_label.png") for name in "ab"
    ]
    # Without them the names differ.
    with pytest.raises(RunError, match=r"without a mask: 4 .*without an image: 4 .*_suffix"):
        open_segmentation_source(config(tmp_path), "train")


@pytest.mark.parametrize(
    ("field", "suffix"), [("image_suffix", ".npy"), ("mask_suffix", ".npy"), ("mask_suffix", "_x")]
)
def test_suffixes_of_files_that_cannot_be_read(tmp_path, field, suffix):
    with pytest.raises(RunError, match=rf"config\.data\.{field} must end with one of .*\.png.*got"):
        open_segmentation_source(config(tmp_path, **{field: suffix}), "train")


def test_missing_masks_and_images(tmp_path):
    """Five are listed, and all counted."""
    names = [f"{i:02}" for i in range(9)]
    write_pairs(tmp_path, names, "images/train/{}.png", "masks/train/{}.png")
    write_classes(tmp_path)
    for name in names[:7]:
        (tmp_path / f"masks/train/{name}.png").unlink()
    (tmp_path / "images/train/08.png").unlink()
    with pytest.raises(RunError) as caught:
        open_segmentation_source(config(tmp_path), "train")
    message = str(caught.value)
    assert f"The split train of {tmp_path} is incomplete" in message
    assert "Images without a mask: 7 (images/train/00.png, images/train/01.png, " in message
    assert "images/train/04.png and 2 more). Masks without an image: 1 (masks/train/08" in message
    assert "The mask of images/train/NAME.jpg is masks/train/NAME.png" in message
    files = find_pairs(config(tmp_path), "train")
    assert [pair.image for pair in files.pairs] == ["images/train/07.png"]
    assert (len(files.without_mask), len(files.without_image)) == (7, 1)


def test_two_images_of_one_name(tmp_path):
    write_pairs(tmp_path, ["a"], "images/train/{}.png", "masks/train/{}.png")
    write(tmp_path / "images/train/a.jpg", pixels(0))
    write_classes(tmp_path)
    with pytest.raises(RunError, match=r"two images of one name, .*config\.data\.image_suffix"):
        open_segmentation_source(config(tmp_path), "train")
    assert len(open_segmentation_source(config(tmp_path, image_suffix=".jpg"), "train")) == 1


def test_what_is_not_there(tmp_path):
    with pytest.raises(RunError, match=r"no folder .*nowhere \(config\.data\.folder\)"):
        open_segmentation_source(config(tmp_path / "nowhere"), "train")
    with pytest.raises(RunError, match=r"has no split train(.|\n)*train/images/NAME\.jpg"):
        open_segmentation_source(config(tmp_path), "train")
    with pytest.raises(RunError, match="is one of folder, ade20k, cityscapes, voc; got 'ade'"):
        open_segmentation_source(config(tmp_path, format="ade"), "train")
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "masks/train").mkdir(parents=True)
    write_classes(tmp_path)
    with pytest.raises(RunError, match=r"has no images\. The mask of"):
        open_segmentation_source(config(tmp_path), "train")


def test_classes(tmp_path):
    """classes.txt of the folder, another file, or an error that says how to give them."""
    write_pairs(tmp_path, ["a"], "images/train/{}.png", "masks/train/{}.png")
    with pytest.raises(RunError, match=rf"write {tmp_path}/classes\.txt, or set config\.data\.cl"):
        open_segmentation_source(config(tmp_path), "train")
    (tmp_path / "classes.txt").write_bytes("\ufeffsky\r\n\r\n road \r\n".encode())
    source = open_segmentation_source(config(tmp_path), "train")
    assert source.label_set.class_names == ("sky", "road")
    other = tmp_path / "other.txt"
    other.write_text("a\nb\nc\n")
    fields = {"classes": str(other), "reduce_zero_label": True}
    source = open_segmentation_source(config(tmp_path, **fields), "train")
    assert source.label_set.class_of_value[:5].tolist() == [255, 0, 1, 2, -1]
    other.write_text("a\na\n")
    with pytest.raises(RunError, match=r"other\.txt: The classes .* two are 'a'"):
        open_segmentation_source(config(tmp_path, **fields), "train")
    other.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RunError, match=r"other\.txt cannot be read"):
        open_segmentation_source(config(tmp_path, **fields), "train")
    with pytest.raises(RunError, match=r"gone\.txt cannot be read: .*No such file"):
        open_segmentation_source(config(tmp_path, classes=str(tmp_path / "gone.txt")), "train")


def test_a_file_that_has_gone(tmp_path):
    write_pairs(tmp_path, ["a", "b"], "images/train/{}.png", "masks/train/{}.png")
    write_classes(tmp_path)
    source = open_segmentation_source(config(tmp_path), "train")
    (tmp_path / "masks/train/a.png").unlink()
    with pytest.raises(ImageError, match=r"masks/train/a\.png: No such file"):
        source[0]
    assert source[1]["origin"].endswith("b.png")


def write_ade20k(root):
    for split, prefix in (("training", "train"), ("validation", "val")):
        write_pairs(
            root,
            [f"ADE_{prefix}_{i:08}" for i in (2, 1)],
            f"images/{split}/{{}}.jpg",
            f"annotations/{split}/{{}}.png",
        )


def test_ade20k(tmp_path):
    write_ade20k(tmp_path)
    for split in ("train", "training"):
        source = open_segmentation_source(config(tmp_path, format="ade20k"), split)
        assert origins(source, tmp_path)[0] == (
            "images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png",
        )  # fmt: skip
    assert len(open_segmentation_source(config(tmp_path, format="ade20k"), "val")) == 2
    assert source.label_set.class_names == label_sets.find("ade20k").class_names
    _, mask = decode_pair(source[0], source.label_set)
    np.testing.assert_array_equal(mask, np.array([255, 0, 1])[classes(1)])
    as_stored = config(tmp_path, format="ade20k", reduce_zero_label=False)
    label_set = open_segmentation_source(as_stored, "train").label_set
    assert label_set.class_of_value[[0, 149, 150]].tolist() == [0, 149, -1]
    np.testing.assert_array_equal(label_set.palette, source.label_set.palette)
    with pytest.raises(RunError, match=r"no .*images/test: .*ADEChallengeData2016"):
        open_segmentation_source(config(tmp_path, format="ade20k"), "test")
    with pytest.raises(RunError, match="ade20k has suffixes of its own"):
        open_segmentation_source(config(tmp_path, format="ade20k", mask_suffix=".png"), "train")


def write_cityscapes(root):
    for name in ("bonn/bonn_000001_000019", "aachen/aachen_000000_000019"):
        write(root / f"leftImg8bit/train/{name}_leftImg8bit.png", pixels(0, (2, 17)))
        ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
        write(root / f"gtFine/train/{name}_gtFine_labelIds.png", ids)
        write(root / f"gtFine/train/{name}_gtFine_color.png", pixels(1))
        write(root / f"gtFine/train/{name}_gtFine_instanceIds.png", ids)


def test_cityscapes(tmp_path):
    """Label ids become train ids; files of train ids are taken where all images have them."""
    write_cityscapes(tmp_path)
    data = config(tmp_path, format="cityscapes")
    source = open_segmentation_source(data, "train")
    names = ["aachen/aachen_000000_000019", "bonn/bonn_000001_000019"]
    assert origins(source, tmp_path) == [
        (f"leftImg8bit/train/{n}_leftImg8bit.png", f"gtFine/train/{n}_gtFine_labelIds.png")
        for n in names
    ]
    by_id = label_sets.find("cityscapes")
    np.testing.assert_array_equal(source.label_set.class_of_value, by_id.class_of_value)
    train_ids = by_id.class_of_value[:34].astype(np.uint8).reshape(2, 17)
    for name in names:
        write(tmp_path / f"gtFine/train/{name}_gtFine_labelTrainIds.png", train_ids)
        source = open_segmentation_source(data, "train")
        complete = name == names[-1]
        kind = "labelTrainIds" if complete else "labelIds"
        assert source[0]["mask_origin"].endswith(f"_gtFine_{kind}.png")
        mask = Image.open(io.BytesIO(source[0]["mask"]))
        found = source.label_set.class_of_value[np.asarray(mask)]
        np.testing.assert_array_equal(found, train_ids)
    assert source.label_set.class_names == by_id.class_names
    np.testing.assert_array_equal(source.label_set.palette, by_id.palette)
    for fields in ({"reduce_zero_label": True}, {"classes": "classes.txt"}):
        with pytest.raises(RunError, match="classes of Cityscapes are fixed"):
            open_segmentation_source({**data, **fields}, "train")
    with pytest.raises(RunError, match=r"no .*leftImg8bit/val: .*gtFine of Cityscapes"):
        open_segmentation_source(data, "val")


def test_voc(tmp_path):
    """Own annotations take precedence over those of the extra set, as in mmsegmentation."""
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for split, names in {"train": "ba", "val": "c", "aug": "ed"}.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    write_pairs(tmp_path, "abcde", "JPEGImages/{}.jpg", "SegmentationClassAug/{}.png")
    write_pairs(tmp_path, "abc", "JPEGImages/{}.jpg", "SegmentationClass/{}.png")
    data = config(tmp_path, format="voc")
    source = open_segmentation_source(data, "train")
    assert origins(source, tmp_path) == [
        (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in "ab"
    ]
    assert source.label_set.class_names == label_sets.find("voc2012").class_names
    joined = [
        *((f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in "ab"),
        *((f"JPEGImages/{name}.jpg", f"SegmentationClassAug/{name}.png") for name in "de"),
    ]
    assert origins(open_segmentation_source(data, "trainaug"), tmp_path) == joined
    (lists / "trainaug.txt").write_text("a\nb\nd\ne\n")
    assert origins(open_segmentation_source(data, "trainaug"), tmp_path) == joined
    assert len(open_segmentation_source(data, "validation")) == 1
    with pytest.raises(RunError, match=r"no .*Segmentation/test\.txt"):
        open_segmentation_source(data, "test")
    (tmp_path / "own.txt").write_text("x\ny\nz\n")
    own = {**data, "classes": str(tmp_path / "own.txt")}
    assert open_segmentation_source(own, "train").label_set.class_names == ("x", "y", "z")


def write_records(
    data_dir, features, name="scenes", supervised_keys=None, variant=None, version="1.0.0", **values
):
    """A data set of TensorFlow Datasets: image `i` is `pixels(i)`, and its mask `classes(i)`."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=variant)] if variant else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised_keys,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index in range(3):
                yield (
                    index,
                    {
                        key: value(index) if callable(value) else value
                        for key, value in values.items()
                    },
                )

    Builder.name = name
    Builder(data_dir=str(data_dir), file_format="array_record").download_and_prepare()


def photo(index):
    return Image.fromarray(pixels(index))


def mask(index):
    return Image.fromarray(classes(index))


IMAGE = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
MASK = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
LABELLED = tfds.features.LabeledImage(
    labels=["sky", "road", "tree"], shape=(None, None, 1), encoding_format="png"
)


def check_records(source):
    assert len(source) == 3
    found = set()
    for example in (source[i] for i in range(3)):
        assert set(example) == {"image", "mask", "origin", "mask_origin"}
        image, decoded = decode_pair(example, source.label_set)
        index = next(i for i in range(3) if (pixels(i) == image).all())
        np.testing.assert_array_equal(decoded, classes(index))
        found.add(index)
    assert found == {0, 1, 2}


def test_records_with_class_names(tmp_path):
    features = {"image": IMAGE, "mask": LABELLED, "file_name": tfds.features.Text()}
    write_records(
        tmp_path, features, image=photo, mask=mask, file_name=lambda index: f"{index}.png"
    )
    data = config(name="scenes", data_dir=str(tmp_path))
    source = open_segmentation_source(data, "train")
    check_records(source)
    assert source.label_set.class_names == ("sky", "road", "tree")
    assert source.label_set.name == "scenes"
    example = source[1]
    assert example["origin"].startswith("scenes, split train, example 1 (")
    assert example["mask_origin"] == f"of {example['origin']}"
    assert len(open_segmentation_source(data, "train[:67%]")) == 2
    reduced = open_segmentation_source({**data, "reduce_zero_label": True}, "train")
    assert reduced.label_set.class_of_value[:5].tolist() == [255, 0, 1, 2, -1]
    with pytest.raises(RunError, match="no split 'val'; it has train"):
        open_segmentation_source(data, "val")
    with pytest.raises(RunError, match="are for a folder of images"):
        open_segmentation_source({**data, "mask_suffix": ".png"}, "train")


def write_pets(tmp_path, name):
    """Masks without class names, beside other features, whose values count from 1."""
    features = {
        "image": IMAGE,
        "label": tfds.features.ClassLabel(num_classes=37),
        "species": tfds.features.ClassLabel(names=["Cat", "Dog"]),
        "file_name": tfds.features.Text(),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
        "head_bbox": tfds.features.BBoxFeature(),
    }
    write_records(
        tmp_path,
        features,
        name=name,
        version="4.0.0",
        supervised_keys=("image", "label"),
        image=photo,
        label=5,
        species=1,
        file_name="beagle_1.jpg",
        segmentation_mask=lambda index: Image.fromarray(classes(index) + 1),
        head_bbox=tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
    )
    return config(name=name, data_dir=str(tmp_path))


def test_pets(tmp_path):
    source = open_segmentation_source(write_pets(tmp_path, "oxford_iiit_pet"), "train")
    check_records(source)
    assert source.label_set.class_names == ("pet", "background", "border")
    assert source.label_set.class_of_value[:5].tolist() == [255, 0, 1, 2, -1]
    assert source[0]["origin"].endswith("(beagle_1.jpg)")
    (tmp_path / "own.txt").write_text("foreground\nbackground\nedge\n")
    data = config(name="oxford_iiit_pet", data_dir=str(tmp_path))
    data |= {"classes": str(tmp_path / "own.txt"), "reduce_zero_label": True}
    own = open_segmentation_source(data, "train")
    check_records(own)
    assert own.label_set.class_names == ("foreground", "background", "edge")


def test_records_without_class_names(tmp_path):
    data = write_pets(tmp_path, "scenes")
    with pytest.raises(RunError, match=r"not known: set config\.data\.classes.*reduce_zero_label"):
        open_segmentation_source(data, "train")
    (tmp_path / "pets.txt").write_text("pet\nbackground\nborder\n")
    data |= {"classes": str(tmp_path / "pets.txt"), "reduce_zero_label": True}
    check_records(open_segmentation_source(data, "train"))


def test_cityscapes_of_tensorflow_datasets(tmp_path):
    """Its masks have label ids, which it has no names of."""
    ids = np.array([7, 8, 11], np.uint8)
    features = {"image_id": tfds.features.Text(), "image_left": IMAGE, "segmentation_label": MASK}
    write_records(
        tmp_path,
        features,
        name="cityscapes",
        variant="semantic_segmentation",
        image_id="aachen",
        image_left=photo,
        segmentation_label=lambda index: Image.fromarray(ids[classes(index)]),
    )
    source = open_segmentation_source(config(name="cityscapes", data_dir=str(tmp_path)), "train")
    check_records(source)
    assert source.label_set.class_names == label_sets.find("cityscapes").class_names
    assert source.label_set.class_of_value[7] == 0


def test_the_supervised_keys_decide(tmp_path):
    features = {"image": IMAGE, "depth": MASK, "mask": MASK, "other": IMAGE}
    values = {"image": photo, "depth": mask, "mask": mask, "other": photo}
    data = config(name="scenes", data_dir=str(tmp_path / "a"))
    write_records(tmp_path / "a", features, **values)
    with pytest.raises(RunError, match="scenes is not a segmentation set, with one image and one"):
        open_segmentation_source(data, "train")
    write_records(tmp_path / "b", features, supervised_keys=("image", "mask"), **values)
    write_classes(tmp_path)
    data |= {"data_dir": str(tmp_path / "b"), "classes": str(tmp_path / "classes.txt")}
    check_records(open_segmentation_source(data, "train"))


def test_records_without_masks(data_dir):
    with pytest.raises(RunError, match="digits is not a segmentation set"):
        open_segmentation_source(config(name="digits", data_dir=str(data_dir)), "train")


def test_records_that_are_not_prepared(tmp_path):
    with pytest.raises(RunError) as caught:
        open_segmentation_source(config(name="oxford_iiit_pet", data_dir=str(tmp_path)), "train")
    message = str(caught.value)
    assert "tfds.builder('oxford_iiit_pet', data_dir=" in message
    assert "a folder of images and masks, DIR/images/SPLIT/NAME.jpg" in message
    assert f"train.prepare DIR --name NAME --format folder --data_dir {tmp_path}" in message


TRANSFORM = SegmentationTransform(
    limits=(16, 12),
    ratio_range=(0.5, 2.0),
    crop_size=(8, 8),
    cat_max_ratio=0.75,
    flip=True,
    photometric=True,
    label_set=LabelSet.of(["sky", "road", "tree"]),
)


def batches(root, count=4, reports=None, **reading):
    split = TrainingSplit(
        open_segmentation_source(config(root), "train"),
        TRANSFORM,
        batch_size=4,
        seed=0,
        reading=Reading(**reading),
    )
    report = [].append if reports is None else reports.append
    return list(itertools.islice(split.batches(0, report), count))


def test_batches_are_the_same_for_any_number_of_threads(tmp_path):
    write_pairs(tmp_path, "abcdefg", "images/train/{}.png", "masks/train/{}.png")
    write_classes(tmp_path)
    one, many = batches(tmp_path, threads=1), batches(tmp_path, threads=3)
    for first, second in zip(one, many, strict=True):
        assert set(first) == {"image", "mask", "valid_size"}
        assert first["image"].shape == (4, 8, 8, 3)
        assert first["mask"].shape == (4, 8, 8)
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name])


def test_a_pair_that_does_not_fit_stops_or_is_replaced(tmp_path):
    write_pairs(tmp_path, "abcdefg", "images/train/{}.png", "masks/train/{}.png")
    write(tmp_path / "masks/train/c.png", classes(0, size=(6, 7)))
    write_classes(tmp_path)
    with pytest.raises(RunError, match=r"masks/train/c\.png has 7 x 6 pixels.*unreadable=replace"):
        batches(tmp_path, threads=1)
    reports = []
    assert len(batches(tmp_path, reports=reports, threads=1, replace=True)) == 4
    assert any("masks/train/c.png has 7 x 6 pixels" in report for report in reports)
