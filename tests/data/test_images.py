from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from atconv.data.images import PrepareImage, image_suffixes, mode_for, open_image, read_image
from atconv.data.listing import list_images
from atconv.data.sources.folders import FolderSource

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def read(file: io.BytesIO, mode: str = "RGB") -> np.ndarray:
    image = read_image(file, mode)  # type: ignore[arg-type]
    assert image.mode == mode
    return np.asarray(image)


def test_color_is_read_as_it_is() -> None:
    np.testing.assert_array_equal(read(encoded(Image.fromarray(NOISE))), NOISE)


def test_gray_is_read_as_it_is_and_three_times_in_color() -> None:
    file = encoded(Image.fromarray(GRAY)).getvalue()
    np.testing.assert_array_equal(read(io.BytesIO(file), "L"), GRAY)
    np.testing.assert_array_equal(read(io.BytesIO(file)), np.stack([GRAY] * 3, 2))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: np.swapaxes(a, 0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.swapaxes(np.rot90(a, 2), 0, 1)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, upright, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(NOISE), kind, exif=exif)
    np.testing.assert_array_equal(read(file), upright(NOISE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_file_is_read_as_its_bytes_are(tmp_path: Path, orientation: int) -> None:
    """Pillow reads uncompressed ones in another way by their path."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(tmp_path / "scan.tif", exif=exif)
    read, expected = (
        read_image(tmp_path / "scan.tif"),
        read_image(io.BytesIO((tmp_path / "scan.tif").read_bytes())),
    )
    assert read.size == expected.size == ((8, 6) if orientation < 5 else (6, 8))
    assert read.tobytes() == expected.tobytes()


@pytest.mark.parametrize("alpha", [0, 255, 100])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white(mode: str, alpha: int) -> None:
    opaque = Image.fromarray(NOISE if mode == "RGBA" else GRAY)
    image = opaque.copy()
    image.putalpha(alpha)
    assert image.mode == mode
    ink = np.asarray(opaque.convert("RGB"), dtype=float)
    expected = (ink * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(read(encoded(image)) - expected).max() <= 1


def test_a_transparent_palette_color_is_white() -> None:
    image = Image.fromarray((GRAY > 100).astype(np.uint8), "L").convert("P")
    image.putpalette([200, 0, 0, 0, 0, 200])
    seen = read(encoded(image, transparency=0))
    assert (seen[GRAY <= 100] == 255).all()
    assert (seen[GRAY > 100] == [0, 0, 200]).all()


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_key_color_is_white(mode: str, key: object) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), (9, 9, 9) if mode == "RGB" else 9)
    np.testing.assert_array_equal(read(encoded(image, transparency=key)), [[[255] * 3, [9] * 3]])


def test_cmyk_is_read_as_color() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    seen = read(encoded(image, "TIFF"))
    assert (seen[..., 0] > 200).all()
    assert (seen[..., 1:] < 60).all()


def test_sixteen_bits_of_gray_are_scaled_to_eight() -> None:
    values = RNG.integers(0, 65536, (16, 16)).astype(np.uint16)
    seen = read(encoded(Image.fromarray(values)), "L")
    assert np.abs(seen - values / 257).max() <= 0.5


def sixteen_bit_color_png(values: np.ndarray) -> io.BytesIO:
    """A PNG with 16 bits a channel, which PIL reads and cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)


def test_sixteen_bits_of_color_are_scaled_to_eight() -> None:
    values = RNG.integers(0, 65536, (6, 8, 3)).astype(np.uint16)
    assert np.abs(read(sixteen_bit_color_png(values)) - values / 257).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_by_the_range_they_span(top: float) -> None:
    values = np.linspace(0, top, 48, dtype=np.float32).reshape(6, 8)
    seen = read(encoded(Image.fromarray(values), "TIFF"), "L")
    assert np.abs(seen - values * (255 / top)).max() <= 0.51


def test_floats_that_are_no_numbers_leave_the_others_as_they_are() -> None:
    values = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    values[2, :3] = np.nan, np.inf, -np.inf
    seen = read(encoded(Image.fromarray(values), "TIFF"), "L")
    finite = np.isfinite(values)
    assert np.abs(seen - values * 255)[finite].max() <= 0.51
    assert seen[2, :3].tolist() == [0, 255, 0]
    assert read(encoded(Image.fromarray(np.full_like(values, np.nan)), "TIFF"), "L").max() == 0


def test_one_bit_is_black_and_white() -> None:
    seen = read(encoded(Image.fromarray(GRAY > 127)), "L")
    np.testing.assert_array_equal(seen, np.where(GRAY > 127, 255, 0))


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (read(file) == [255, 0, 0]).all()


SAVED_IN = {
    "rgb.png": Image.fromarray(NOISE),
    "gray.png": Image.fromarray(GRAY),
    "rgba.png": Image.fromarray(np.dstack([NOISE, GRAY])),
    "la.png": Image.fromarray(GRAY).convert("LA"),
    "palette.gif": Image.fromarray(NOISE).quantize(8),
    "cmyk.jpg": Image.fromarray(NOISE).convert("CMYK"),
    "ycbcr.jpg": Image.fromarray(NOISE),
    "sixteen.png": Image.fromarray(GRAY.astype(np.uint16) * 257),
    "float.tif": Image.fromarray(GRAY.astype(np.float32) / 255),
    "bit.pbm": Image.fromarray(GRAY > 127),
    "lossless.webp": Image.fromarray(NOISE),
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", SAVED_IN)
def test_training_and_prediction_read_an_image_alike(tmp_path: Path, name: str, mode) -> None:
    path = tmp_path / "class" / name
    path.parent.mkdir()
    SAVED_IN[name].save(path)
    trained = FolderSource(tmp_path).read(0, mode)
    predicted = read_image(path, mode)
    with Image.open(path) as opened:
        by_a_user = PrepareImage(3 if mode == "RGB" else 1)(opened)
    for other in (predicted, by_a_user):
        assert other.mode == trained.mode == mode
        np.testing.assert_array_equal(np.asarray(other), np.asarray(trained))


def test_every_kind_of_file_that_is_looked_for_is_tried_here() -> None:
    assert {Path(name).suffix for name in SAVED_IN} <= image_suffixes()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_garbage_is_not_an_image(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable image"):
        read_image(io.BytesIO(content))


def files() -> dict[str, bytes]:
    large = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "PNG": {},
        "JPEG": {"exif": exif},
        "TIFF": {"exif": exif},
        "GIF": {},
        "WEBP": {"exif": exif},
        "BMP": {},
        "PPM": {},
    }
    return {kind: encoded(large, kind, **options).getvalue() for kind, options in kinds.items()}


FILES = files()


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_changed_file_is_an_image_or_a_value_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):  # any other error fails
        assert read(io.BytesIO(bytes(content))).ndim == 3


@pytest.mark.parametrize("kind", sorted(FILES))
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_not_an_image(kind: str, share: float) -> None:
    with pytest.raises(ValueError, match="not a readable image"):
        read_image(io.BytesIO(FILES[kind][: int(share * len(FILES[kind]))]))


def test_the_message_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.png: not a readable image"):
        read_image(tmp_path / "notes.png")


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")


def test_an_image_too_large_to_be_honest_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="not a readable image"):
        read_image(encoded(Image.fromarray(NOISE)))


def test_an_upright_image_stays_upright_when_prepared_twice() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    once = read_image(encoded(Image.fromarray(NOISE), exif=exif))
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(once)), np.asarray(once))
    np.testing.assert_array_equal(np.asarray(PrepareImage(3)(once)), np.asarray(once))


@pytest.mark.parametrize("in_chans", [0, 2, 4])
def test_images_have_one_or_three_channels(in_chans: int) -> None:
    with pytest.raises(ValueError, match=f"got {in_chans}"):
        mode_for(in_chans)


@pytest.mark.parametrize(("image", "kind"), [(torch.rand(3, 4, 4), "Tensor"), (None, "NoneType"), (3, "int")])
def test_what_is_no_image_is_rejected(image: object, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"a path, a PIL image or an array .* of uint8, got {kind}"):
        open_image(image)  # type: ignore[arg-type]


def test_files_images_and_arrays_are_opened() -> None:
    for image in (encoded(Image.fromarray(NOISE)), Image.fromarray(NOISE), NOISE):
        np.testing.assert_array_equal(np.asarray(open_image(image)), NOISE)  # type: ignore[arg-type]


def test_heic_is_read_where_its_plugin_is_installed_and_named_where_not(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    for label in "ab":
        (tmp_path / label).mkdir()
        heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(tmp_path / label / "0.HEIC")
    assert list_images(tmp_path).files == ["a/0.HEIC", "b/0.HEIC"]
    image = read_image(tmp_path / "a" / "0.HEIC")
    assert image.size == (64, 48)
    assert image.getpixel((9, 9))[0] > 200  # type: ignore[index]
    Image.new("L", (4, 4)).save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.heic").write_bytes(b"none")
    others = image_suffixes() - {".heic", ".heif", ".hif"}
    with (
        mock.patch("atconv.data.images.image_suffixes", return_value=others),
        mock.patch("atconv.data.listing.image_suffixes", return_value=others),
    ):
        assert "3 .heic; for .heic: pip install 'atconv[heif]'" in FolderSource(tmp_path).remarks[0]
        with pytest.raises(ValueError, match=r"2.heic: .*; for .heic: pip install 'atconv\[heif\]'"):
            read_image(tmp_path / "a" / "2.heic")
