"""Images from files, bytes and arrays."""

import io
import os
import struct
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from replk_jax.vision.images import (
    IMAGE_SUFFIXES,
    ImageError,
    describe_left_out,
    find_images,
    image_error,
    image_name,
    image_names,
    read_image,
    to_array,
)


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
    """But to a TIFF, where Pillow applies it."""
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    assert read_image(encoded(image, exif=exif)).size == image.size
    turned = np.rot90(np.asarray(image), -1)
    read = read_image(encoded(image, "TIFF", exif=exif))
    np.testing.assert_array_equal(np.asarray(read), turned)


def turned_by(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# What shows stored pixels upright, by the EXIF orientation: the place of row 0, column 0 in it.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],  # top right
    3: lambda x: x[::-1, ::-1],  # bottom right
    4: lambda x: x[::-1],  # bottom left
    5: lambda x: x.swapaxes(0, 1),  # left top
    6: lambda x: np.rot90(x, -1),  # right top
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),  # right bottom
    8: lambda x: np.rot90(x, 1),  # left bottom
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright(orientation, format, tmp_path):
    """Once, from whatever source: the result says nothing of it any more."""
    pixels = picture()
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(pixels), format, exif=turned_by(orientation), **options)
    path = tmp_path / "turned"
    path.write_bytes(data)
    expected = UPRIGHT[orientation](pixels)
    opened = Image.open(path)
    for source in (data, path, opened, opened, opened.convert("RGB")):
        read = read_image(source, upright=True)
        np.testing.assert_array_equal(np.asarray(read), expected)
        np.testing.assert_array_equal(np.asarray(read_image(read, upright=True)), expected)


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_means_nothing(orientation):
    image = Image.fromarray(picture())
    data = encoded(image, exif=turned_by(orientation))
    np.testing.assert_array_equal(np.asarray(read_image(data, upright=True)), picture())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # when Pillow opens the file
def test_damaged_exif_does_not_cost_the_image():
    image = Image.fromarray(picture())
    for damage in (
        b"Exif\0\0",
        b"Exif\0\0MM\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0no EXIF",
    ):
        data = encoded(image, "JPEG", exif=damage)
        read = read_image(data, upright=True)
        np.testing.assert_array_equal(np.asarray(read), np.asarray(read_image(data)))


def test_grey_values_of_16_bits_are_turned_upright():
    values = np.arange(63, dtype=np.uint16).reshape(7, 9) << 8
    data = encoded(Image.fromarray(values), exif=turned_by(6))
    read = np.asarray(read_image(data, 1, upright=True))
    np.testing.assert_array_equal(read, np.rot90(values >> 8, -1))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_are_scaled_and_not_cut(order):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    mode = "I;16" if order == "<" else "I;16B"
    image = Image.frombytes(mode, (8, 8), ramp.astype(f"{order}u2").tobytes())
    np.testing.assert_array_equal(np.asarray(read_image(image, 1)), ramp >> 8)
    grey = np.asarray(read_image(encoded(Image.fromarray(ramp)), 3))
    np.testing.assert_array_equal(grey, np.repeat((ramp >> 8)[..., None], 3, -1))


def tiff(values, bits, white_is_zero=False, order="<"):
    """A TIFF of one strip and one row of grey values, without compression."""
    digits = "".join(format(value, f"0{bits}b") for value in values)
    data = bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    if bits == 16:
        data = np.array(values, f"{order}u2").tobytes()
    tags = [(256, 3, len(values)), (257, 3, 1), (258, 3, bits), (259, 3, 1),
            (262, 3, 0 if white_is_zero else 1), (273, 4, 8), (277, 3, 1), (278, 3, 1),
            (279, 4, len(data))]  # fmt: skip
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))
        for tag, kind, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def png(values, colour_type):
    """A PNG of one row of pixels with 16 bits a value, (pixels, channels)."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", len(values), 1, 16, colour_type, 0, 0, 0)
    rows = b"\0" + np.array(values, ">u2").tobytes()
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff([0, 16, 2048, 4095], 12), [0, 1, 128, 255]),
        (tiff([0, 256, 30000, 65535], 16), [0, 1, 117, 255]),
        (tiff([0, 256, 30000, 65535], 16, order=">"), [0, 1, 117, 255]),
        (tiff([0, 256, 30000, 65535], 16, white_is_zero=True), [255, 254, 138, 0]),
        (b"P5 3 1 65535\n" + np.array([0, 30000, 65535], ">u2").tobytes(), [0, 117, 255]),
        # Of 1023, scaled by Pillow to 65535 first.
        (b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes(), [0, 128, 255]),
        (b"P5 3 1 100\n" + bytes([0, 50, 100]), [0, 128, 255]),
        (b"P2 2 1 65535 0 65535", [0, 255]),
        (b"P1 2 1 0 1", [255, 0]),
        (png([[0], [30000], [65535]], 0), [0, 117, 255]),
        (
            encoded(Image.fromarray(np.array([[0, 30000, 65535]], np.uint16)), "JPEG2000"),
            [0, 117, 255],
        ),
    ],
    ids=range(11),
)
def test_grey_values_of_any_depth(data, expected):
    """By their highest 8 bits, or of another largest value by their share of it."""
    assert np.asarray(read_image(data, 1)).tolist() == [expected]
    assert np.asarray(read_image(data, 3)).tolist() == [[[value] * 3 for value in expected]]


def test_colours_of_sixteen_bits():
    values = [[0, 30000, 65535], [256, 512, 60000]]
    expected = [[[0, 117, 255], [1, 2, 234]]]
    assert np.asarray(read_image(png(values, 2))).tolist() == expected
    transparent = [[*value, 100] for value in values]
    assert np.asarray(read_image(png(transparent, 6))).tolist() == expected
    data = b"P6 2 1 65535\n" + np.array(values, ">u2").tobytes()
    np.testing.assert_allclose(np.asarray(read_image(data)), expected, atol=1)  # rounded


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_the_first_of_several_frames_is_read(format):
    frames = [Image.new("RGB", (8, 6), (level,) * 3) for level in (200, 20, 90)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_allclose(np.asarray(read_image(data)), np.full((6, 8, 3), 200), atol=2)


def test_colours_of_a_palette_and_of_print():
    """Also a palette with a transparent colour, which keeps its colour."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    data = encoded(image, transparency=1)
    assert np.asarray(read_image(data)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for format in ("JPEG", "TIFF"):
        pixels = np.asarray(read_image(encoded(cmyk, format)))
        np.testing.assert_allclose(pixels, np.broadcast_to((0, 255, 255), (16, 16, 3)), atol=3)


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


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_values_without_a_range_are_refused(dtype, mode):
    data = encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")
    message = rf"no known range \(mode {mode}\); scale them to uint8 first"
    with pytest.raises(ImageError, match=rf"the image cat\.tif: .*{message}"):
        read_image(data, name="cat.tif")


def test_a_copy_of_16_bits():
    """Keeps its range where its mode says so; a PGM's, which is held as 32 bits, does not."""
    values = np.full((4, 4), 0x1234, np.uint16)
    with Image.open(io.BytesIO(encoded(Image.fromarray(values), "PNG"))) as image:
        assert np.unique(read_image(image.copy(), 1)).tolist() == [0x12]
    pgm = b"P5 4 4 65535\n" + values.astype(">u2").tobytes()
    assert np.unique(read_image(pgm, 1)).tolist() == [0x12]
    with (
        Image.open(io.BytesIO(pgm)) as image,
        pytest.raises(ImageError, match="scale them to uint8 first"),
    ):
        read_image(image.copy())


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels(channels):
    message = rf"channels must be 1 \(grey\) or 3 \(colour\); got {channels}"
    with pytest.raises(ValueError, match=message):
        read_image(picture(), channels)


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
    with Image.open(path) as image, pytest.raises(OSError, match="started"):
        image.load()


@pytest.mark.parametrize("format", ["ICO", "PCX", "TGA", "SGI", "PDF", "ICNS", "MSP"])
def test_formats_that_are_not_read(format):
    image = Image.fromarray(picture(64, 64)).convert("1" if format == "MSP" else "RGB")
    with pytest.raises(ImageError, match="it is no image, or none of"):
        read_image(encoded(image, format))


@pytest.mark.parametrize(
    "format", ["JPEG", "MPO", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF", "JPEG2000"]
)
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
    for format in ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF", "JPEG2000"):
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


def test_names_that_cannot_be_printed_are_escaped(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9\n.png"
    for source in (os.fsdecode(path), tmp_path / "caf\udce9\n.png"):
        with pytest.raises(ImageError, match=r"/caf\\udce9\\n\.png: No such file") as caught:
            read_image(source)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MemoryError"),
        (OSError(), "OSError"),
        (ValueError(" \n"), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), "No such file or directory"),
        (OSError("broken data stream"), "broken data stream"),
        (SyntaxError("not a\nTIFF."), r"not a\nTIFF"),
    ],
)
def test_an_error_has_a_reason(error, reason):
    assert str(image_error("cat.png", error)) == f"Cannot read the image cat.png: {reason}."


def test_an_image_of_pillow_is_decoded_by_one_thread(tmp_path):
    """However many read it at a time, as its decoder needs; the others wait for it."""

    class Slow(Image.Image):
        at_once, calls, loaded = 0, 0, False

        def load(self):
            if not self.loaded:
                self.calls += 1
                self.at_once += 1
                time.sleep(0.05)
                assert self.at_once == 1
                self.at_once -= 1
                self.loaded = True
            return super().load()

    image = Slow()
    image._im, image._mode, image._size = Image.new("L", (4, 3), 7).im, "L", (4, 3)
    with ThreadPoolExecutor(8) as threads:
        for result in threads.map(read_image, [image] * 8):
            assert np.asarray(result).tolist() == [[[7] * 3] * 4] * 3
    assert image.calls == 1

    path = tmp_path / "large.jpg"
    Image.fromarray(picture(1200, 900)).save(path)
    expected = np.asarray(read_image(path))
    with Image.open(path) as lazy, ThreadPoolExecutor(8) as threads:
        for result in threads.map(read_image, [lazy] * 8):
            np.testing.assert_array_equal(np.asarray(result), expected)


def format_of(suffix):
    """Pillow's name of the format that files with this ending have."""
    return {".mpo": "MPO", ".pnm": "PPM", ".jfif": "JPEG"}.get(
        suffix, Image.registered_extensions().get(suffix)
    )


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_what_is_found_can_be_read(suffix, tmp_path):
    for name in ("a" + suffix, "B" + suffix.upper()):
        Image.fromarray(picture()).save(tmp_path / name, format_of(suffix))
    found = find_images(tmp_path)
    assert [path.name.lower() for path in found] == ["b" + suffix, "a" + suffix]
    assert all(read_image(path).size == (9, 7) for path in found)


def test_what_torchvision_finds_is_found():
    """Its `IMG_EXTENSIONS`."""
    assert set(IMAGE_SUFFIXES) >= {
        ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
    }  # fmt: skip


def test_files_that_are_left_out_are_counted(tmp_path):
    """But not hidden ones and those of text; and folders of any name are searched."""
    (tmp_path / "b.heic").mkdir()
    for name in (
        "a.png", "b.heic/c.png", "b.heic/d.HEIC", "e.heic", "f", "g.svg", "h.jpg.part",
        "i\udce9.\x1b", ".DS_Store", "._a.png", ".hidden.svg", "notes.txt", "labels.json",
        "Thumbs.db", "a.xml",
    ):  # fmt: skip
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "b.heic")
    with pytest.warns(UserWarning, match="not read as images") as caught:
        found = find_images(tmp_path)
    assert found == [tmp_path / "a.png", tmp_path / "b.heic" / "c.png"]
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith(f"{tmp_path} has files that are not read as images: 2 .heic, ")
    for part in ("1 without an ending", "1 .svg", "1 .part", r"1 .\x1b", "1 link to a folder"):
        assert part in message
    assert ".tiff" in message
    assert message.isprintable()

    left_out = Counter()
    assert set(image_names(tmp_path, "x/", left_out)) == {"x/a.png", "x/b.heic/c.png"}
    assert left_out.total() == 7
    assert set(image_names(tmp_path)) == {"a.png", "b.heic/c.png"}


def test_very_many_endings_are_counted_together():
    message = describe_left_out("dir", Counter({f".{i}": 1 for i in range(2000)}))
    assert message.count("1 .") == 10
    assert "files of 1,990 more endings" in message


def test_folders_are_searched(tmp_path):
    wanted = ["a.JPEG", "b/c/d.png", "b/e.webp"]
    for name in (*wanted, "b/notes.txt", "._a.jpg", ".cache/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [tmp_path / name for name in wanted]
    hidden = tmp_path / ".cache"  # when it is asked for itself
    assert find_images(hidden) == [hidden / "f.png"]
