"""The programs in examples/."""

import io
import json
import runpy
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class TestNuclei:
    program = runpy.run_path(str(EXAMPLES / "nuclei.py"))

    @pytest.fixture
    def wheel(self, tmp_path):
        """Two nuclei that touch, in the layout of StarDist's wheel."""
        nuclei = np.zeros((512, 512), np.uint16)
        nuclei[10:20, 10:20], nuclei[10:20, 20:30] = 1, 2
        image = np.random.default_rng(0).integers(0, 235, nuclei.shape)
        path = tmp_path / "stardist.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, pixels in (("img2d", image), ("mask2d", nuclei)):
                file = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint16)).save(file, "TIFF")
                archive.writestr(f"stardist/data/images/{name}.tif", file.getvalue())
        return path

    def test_folder(self, wheel, tmp_path):
        folder = tmp_path / "data"
        self.program["main"]([str(wheel), str(folder)])
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
        assert {name.replace("images", "masks") for name in files} == {
            name for name in files if name.startswith("masks")
        }
        assert len(files) == 2 * (13 * 8 + 4)
        assert (folder / "classes.txt").read_text().split() == ["background", "nucleus"]
        mask = np.array(Image.open(folder / "masks/train/000_000.png"))
        expected = np.zeros((128, 128), np.uint8)
        expected[10:20, 10:30] = 1
        np.testing.assert_array_equal(mask, expected)

    def test_the_splits_share_no_pixel(self):
        last = self.program["_TRAINING_COLUMNS"]
        assert last <= 512 - self.program["SIDE"]

    def test_a_wheel_of_something_else(self, tmp_path):
        path = tmp_path / "other.whl"
        zipfile.ZipFile(path, "w").close()
        with pytest.raises(SystemExit, match="Give a wheel of StarDist"):
            self.program["main"]([str(path), str(tmp_path / "data")])

    def test_a_folder_that_exists(self, wheel, tmp_path):
        with pytest.raises(SystemExit, match="a folder that does not exist"):
            self.program["main"]([str(wheel), str(tmp_path)])


class TestTrees:
    program = runpy.run_path(str(EXAMPLES / "trees.py"))

    @pytest.fixture
    def wheel(self, tmp_path):
        """One tree in each photograph, in the layout of DeepForest's wheel."""
        path = tmp_path / "deepforest.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name in sum(self.program["PHOTOGRAPHS"].values(), ()):
                file = io.BytesIO()
                Image.new("RGB", (400, 300), (10, 200, 30)).save(file, "PNG")
                archive.writestr(f"deepforest/data/{name}.png", file.getvalue())
                sides = {"xmin": 170, "ymin": 20, "xmax": 210, "ymax": 70}
                box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
                annotations = (
                    f"<annotation><object><name>Tree</name><bndbox>{box}</bndbox></object>"
                    "</annotation>"
                )
                archive.writestr(f"deepforest/data/{name}.xml", annotations)
        return path

    def test_folder(self, wheel, tmp_path):
        folder = tmp_path / "data"
        self.program["main"]([str(wheel), str(folder)])
        content = {
            split: json.loads((folder / f"annotations/instances_{split}.json").read_text())
            for split in ("train", "val")
        }
        for split, tiles in (("train", 3 * 2 * 3), ("val", 1 * 2)):
            files = {path.name for path in (folder / split).iterdir()}
            assert {image["file_name"] for image in content[split]["images"]} == files
            assert len(files) == tiles
        names = {image["id"]: image["file_name"] for image in content["val"]["images"]}
        found = {names[each["image_id"]]: each["bbox"] for each in content["val"]["annotations"]}
        # 22 of the 40 columns are in the first tile; the others are less than half.
        assert found == {"0_0000_0000.png": [170, 20, 22, 50]}
        training = {
            image["file_name"]: [
                each["bbox"]
                for each in content["train"]["annotations"]
                if each["image_id"] == image["id"]
            ]
            for image in content["train"]["images"]
        }
        assert training["1_0000_0096.png"] == [[74, 20, 40, 50]]
        assert training["1_0096_0096.png"] == []

    def test_a_wheel_of_something_else(self, tmp_path):
        path = tmp_path / "other.whl"
        zipfile.ZipFile(path, "w").close()
        with pytest.raises(SystemExit, match="Give a wheel of DeepForest"):
            self.program["main"]([str(path), str(tmp_path / "data")])

    def test_a_folder_that_exists(self, wheel, tmp_path):
        with pytest.raises(SystemExit, match="a folder that does not exist"):
            self.program["main"]([str(wheel), str(tmp_path)])
