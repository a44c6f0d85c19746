"""The programs in examples/."""

import io
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
