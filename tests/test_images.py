"""Images from files, bytes and arrays."""

import io

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from replk_jax.images import ImageError, find_images, image_name, read_image, to_array


def picture(width=9, height=7, channels=3, seed=0):
    """Random pixels (H, W, channels), or (H, W) for None."""
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA", "YCbCr"])
@pytest.mark.parametrize(("channels", "converted"), [(1, "L"), (3, "RGB")])
def test_every_colour_mode(mode, channels, converted):
    image = Image.fromarray(picture()).convert(mode)
    expected = np.asarray(image.convert(converted))
    data = encoded(image, "PNG" if mode in ("L", "RGB", "RGBA", "P", "1", "LA") else "TIFF")
    for source in (image, data):
        result = read_image(source, channels)
        assert result.mode == converted
        np.testing.assert_array_equal(np.asarray(result), expected)


def test_transparency_is_dropped_not_blended():
    """As by the loaders of torchvision and timm."""
    pixels = picture(channels=4)
    result = read_image(encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(np.asarray(result), pixels[..., :3])
    np.testing.assert_array_equal(np.asarray(read_image(pixels)), pixels[..., :3])


def test_orientation_is_not_applied():
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    assert read_image(encoded(image, exif=exif)).size == image.size


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_are_scaled_and_not_cut(order):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    mode = "I;16" if order == "<" else "I;16B"
    image = Image.frombytes(mode, (8, 8), ramp.astype(f"{order}u2").tobytes())
    np.testing.assert_array_equal(np.asarray(read_image(image, 1)), ramp >> 8)
    grey = np.asarray(read_image(encoded(Image.fromarray(ramp)), 3))
    np.testing.assert_array_equal(grey, np.repeat((ramp >> 8)[..., None], 3, -1))


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_arrays(channels):
    pixels = picture(channels=channels)
    colour = np.broadcast_to(pixels if channels else pixels[..., None], (7, 9, 3))
    np.testing.assert_array_equal(np.asarray(read_image(pixels)), colour)
    assert to_array(read_image(pixels, 1)).shape == (7, 9, 1)
    assert to_array(read_image(pixels, 3)).shape == (7, 9, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8, 0 to 255; got float32"),
        (np.zeros((3, 4, 4), np.uint8)[None], r"got \(1, 3, 4, 4\)"),
        (np.zeros((4, 4, 2), np.uint8), r"got \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"got \(4,\)"),
    ],
)
def test_arrays_that_are_no_images(array, message):
    with pytest.raises(ImageError, match=message):
        read_image(array)


def test_values_without_a_range_are_refused():
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(ImageError, match=r"the image cat\.tif: .*no known range"):
        read_image(data, name="cat.tif")


def test_files_that_are_no_images_are_named(tmp_path):
    good = encoded(Image.fromarray(picture(40, 30)))
    path = tmp_path / "cat.png"
    for broken in (b"", b"no image", good[: len(good) // 2], good[:40]):
        path.write_bytes(broken)
        with pytest.raises(ImageError, match=r"Cannot read the image .*cat\.png: "):
            read_image(path)
    with pytest.raises(ImageError, match=r"nowhere\.png: No such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="the image given: it is no image"):
        read_image(b"no image")


def test_a_decoder_that_says_nothing(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match=r"the image given: MemoryError\."):
        read_image(b"")


def test_other_programs_are_not_started(tmp_path, monkeypatch):
    """Pillow would hand an EPS file, which is a program, to Ghostscript."""
    started = []

    def ghostscript(*_, **__):
        started.append(True)
        raise OSError("started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    path = tmp_path / "cat.jpg"
    path.write_bytes(encoded(Image.fromarray(picture()), "EPS"))
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="it is no image, or none of JPEG, PNG"):
            read_image(source)
    assert not started
    with pytest.raises(OSError, match="started"):
        Image.open(path).load()


@pytest.mark.parametrize("format", ["ICO", "PCX", "TGA", "SGI", "PDF", "JPEG2000", "ICNS", "MSP"])
def test_formats_that_are_not_read(format):
    image = Image.fromarray(picture(64, 64)).convert("1" if format == "MSP" else "RGB")
    with pytest.raises(ImageError, match="it is no image, or none of"):
        read_image(encoded(image, format))


@pytest.mark.parametrize("format", ["JPEG", "MPO", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF"])
def test_formats_that_are_read(format, tmp_path):
    """Whatever the file is called; MPO is what some cameras write as JPEG."""
    pixels = np.full((7, 9, 3), 128, np.uint8)
    path = tmp_path / "image.dat"
    path.write_bytes(encoded(Image.fromarray(pixels), format))
    for source in (path, path.read_bytes()):
        np.testing.assert_allclose(np.asarray(read_image(source)), pixels, atol=2)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of damaged metadata
def test_whatever_the_bytes_there_is_an_image_or_an_image_error():
    """Mutated files of every format that is looked for in folders."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(picture(24, 17))
    outcomes = set()
    for format in ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF"):
        good = np.frombuffer(encoded(image, format), np.uint8)
        for _ in range(150):
            bad = good.copy()
            places = rng.integers(0, min(len(bad), rng.choice([64, 1000])), 4)
            bad[places] = rng.integers(0, 256, 4)
            try:
                assert read_image(bad.tobytes()).mode == "RGB"
                outcomes.add("image")
            except ImageError:
                outcomes.add("error")
    assert outcomes == {"image", "error"}


def test_an_image_of_absurd_size_is_refused():
    with pytest.raises(ImageError, match="exceeds limit"):
        read_image(b"P6 100000 100000 255\n")


def test_names(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    assert image_name(path) == image_name(str(path)) == str(path)
    with Image.open(path) as image:
        assert image_name(image) == str(path)
    assert image_name(b"") == image_name(picture()) == "given"


def test_folders_are_searched(tmp_path):
    wanted = ["a.JPEG", "b/c/d.png", "b/e.webp"]
    for name in (*wanted, "b/notes.txt", "._a.jpg", ".cache/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [tmp_path / name for name in wanted]
    hidden = tmp_path / ".cache"  # when it is asked for itself
    assert find_images(hidden) == [hidden / "f.png"]
