import io
import random
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rea2seg.errors import InputError
from rea2seg.images import load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(*rows: list[tuple[int, int, int]]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def rows_of(image: torch.Tensor) -> list[list[tuple[int, ...]]]:
    """Pixels as rows of (r, g, b)."""
    return [[tuple(pixel) for pixel in row] for row in image.permute(1, 2, 0).tolist()]


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size: signature, header, and pixel data that nobody should get to read."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


# What is legal


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tiff", "a.gif", "a.ppm"])
def test_files_paths_and_arrays_give_the_same_bytes(tmp_path, name):
    image = picture([RED, GREEN], [BLUE, WHITE], [GREEN, RED])
    path = saved(tmp_path, image, name, **({"lossless": True} if name == "a.webp" else {}))
    expected = rows_of(load_image(image))
    assert expected == [[RED, GREEN], [BLUE, WHITE], [GREEN, RED]]
    for source in (path, str(path), np.asarray(image), load_image(image)):
        loaded = load_image(source)
        assert (loaded.dtype, loaded.is_contiguous()) == (torch.uint8, True)
        assert rows_of(loaded) == expected


def test_an_image_may_be_one_pixel_high_or_wide(tmp_path):
    assert load_image(saved(tmp_path, picture([RED] * 300), "line.png")).shape == (3, 1, 300)
    assert load_image(np.zeros((300, 1, 3), dtype=np.uint8)).shape == (3, 300, 1)


@pytest.mark.parametrize("array", [np.full((2, 3), 7, np.uint8), np.full((2, 3, 1), 7, np.uint8)])
def test_grey_becomes_three_equal_channels(tmp_path, array):
    path = saved(tmp_path, Image.fromarray(array.reshape(2, 3)), "grey.png")
    for source in (path, array):
        assert load_image(source).unique().tolist() == [7]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_put_on_white(mode):
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((255, 128, 0)):
        image.putpixel((x, 0), (0, 0, 0, alpha))
    loaded = rows_of(load_image(image.convert(mode)))[0]
    assert loaded[0] == (0, 0, 0)
    assert loaded[1][0] == pytest.approx(127, abs=1)
    assert loaded[2] == WHITE


def test_a_transparent_colour_of_a_palette_is_put_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path, image, "palette.png", transparency=0)
    assert rows_of(load_image(path)) == [[WHITE, BLUE]]


def test_a_palette_gives_its_colours(tmp_path):
    image = picture([RED, BLUE]).convert("P", palette=Image.Palette.ADAPTIVE)
    assert rows_of(load_image(saved(tmp_path, image, "palette.png"))) == [[RED, BLUE]]


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = load_image(saved(tmp_path, image, "cmyk.jpg", quality=95))
    assert torch.allclose(red[:, 8, 8].float(), torch.tensor(RED).float(), atol=6)
    assert rows_of(load_image(saved(tmp_path, image, "cmyk.tiff")))[0][0] == RED


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, name):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    path = saved(tmp_path, Image.fromarray(values), name)
    expected = np.round(values.astype(float) * 255 / 65535).astype(int)
    assert expected[0].tolist() == [0, 0, 1, 1, 128, 255]
    assert load_image(path)[0].tolist() == expected.tolist()
    assert load_image(Image.fromarray(values.astype(np.int32)))[0].tolist() == expected.tolist()


def test_ten_bit_grey_is_scaled_to_its_own_white(tmp_path):
    path = tmp_path / "ten.pgm"
    path.write_bytes(b"P5 2 1 1023\n" + struct.pack(">HH", 1023, 0))
    assert load_image(path)[0].tolist() == [[255, 0]]


#         how a person sees it               for EXIF orientation 1 ... 8, of stored rows  RED GREEN / BLUE WHITE / ...
STORED = picture([RED, GREEN], [BLUE, WHITE], [BLUE, BLUE])
CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}


@pytest.mark.parametrize("orientation", list(CORNERS))
@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp"])
def test_exif_rotation_is_applied(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    loaded = rows_of(load_image(saved(tmp_path, STORED, name, exif=exif, **options)))
    assert (len(loaded), len(loaded[0])) == ((3, 2) if orientation < 5 else (2, 3))
    row, column = CORNERS[orientation]
    assert loaded[row][column] == RED
    assert sum(pixel == RED for line in loaded for pixel in line) == 1


def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path):
    path = saved(tmp_path, picture([RED, BLUE]), "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert rows_of(load_image(path)) == [[RED, BLUE]]


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.webp", "a.tiff"):
        options = {"lossless": True} if name == "a.webp" else {}
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
        assert rows_of(load_image(path))[0][0] == RED


# What is not


def refusal(source: object) -> str:
    with pytest.raises(InputError) as caught:
        load_image(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_a_folder_and_an_empty_file_are_named(tmp_path):
    assert refusal(tmp_path / "none.png") == f"image '{tmp_path / 'none.png'}' does not exist"
    assert refusal(tmp_path) == f"image '{tmp_path}' is not a file"
    (tmp_path / "empty.png").touch()
    assert refusal(str(tmp_path / "empty.png")) == f"image '{tmp_path / 'empty.png'}' is an empty file"


def test_names_that_no_file_can_have_are_refused():
    assert "does not exist" in refusal("a\0b.png") or "cannot be read" in refusal("a\0b.png")
    assert "cannot be read" in refusal("a" * 5000)
    assert "download it" in refusal("https://example.org/cat.png")


def test_what_is_not_a_picture_is_refused(tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    assert "notes.png' is not a picture that can be read (PNG, JPEG" in refusal(tmp_path / "notes.png")


def test_formats_that_start_other_programs_are_refused(tmp_path):
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert "is not a picture" in refusal(tmp_path / "drawing.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_truncated_files_are_refused_and_never_half_black(tmp_path, name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = saved(tmp_path, noise, name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert name in refusal(tmp_path / name)


@pytest.mark.parametrize(("width", "height"), [(10_000, 6_001), (9_000, 12_000), (20_000, 20_000)])
def test_sizes_over_fifty_megapixels_are_refused_before_decoding(tmp_path, width, height):
    # Pillow itself is silent about the first, warns of the second and raises at the third.
    (tmp_path / "bomb.png").write_bytes(png_header(width, height))
    assert (tmp_path / "bomb.png").stat().st_size < 100
    assert "has more than 50 megapixels" in refusal(tmp_path / "bomb.png")


def test_large_arrays_and_open_images_are_refused_too(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(10_000, 6_000))
    with Image.open(tmp_path / "bomb.png") as image:
        assert refusal(image) == "the image has more than 50 megapixels: 10000 x 6000; make it smaller"
    huge = np.broadcast_to(np.zeros((1, 1, 3), dtype=np.uint8), (6_000, 10_000, 3))
    assert refusal(huge) == "the array has more than 50 megapixels: 10000 x 6000; make it smaller"


def test_fifty_megapixels_are_not_over_fifty(tmp_path):
    (tmp_path / "large.png").write_bytes(png_header(10_000, 5_000))
    assert "cannot be read: image file is truncated" in refusal(tmp_path / "large.png")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_form_are_refused(array):
    assert "array" in refusal(array)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)]
)
def test_tensors_of_another_form_are_refused(tensor):
    assert "an image tensor must be (3, height, width) of uint8" in refusal(tensor)
    assert "no pixels" in refusal(torch.zeros(3, 0, 4, dtype=torch.uint8))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("source", [None, b"\x89PNG", io.BytesIO()])
def test_what_is_no_source_of_an_image_is_refused(source):
    assert f"an array or a tensor of uint8, not a {type(source).__name__}" in refusal(source)


def test_numbers_without_a_known_white_are_refused(tmp_path):
    deep = Image.fromarray(np.array([[0, 70_000]], dtype=np.int32))
    assert "32-bit" in refusal(saved(tmp_path, deep, "deep.tiff"))
    assert "decimal" in refusal(Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)))


def test_an_image_without_pixels_is_refused():
    assert refusal(Image.new("RGB", (0, 5))) == "the image has no pixels (0 x 5)"


def test_an_open_image_whose_file_is_truncated_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path / "half.png").write_bytes(buffer.getvalue()[:6000])
    with Image.open(tmp_path / "half.png") as image:
        assert "the image cannot be read" in refusal(image)


def test_random_damage_gives_an_image_or_our_error(tmp_path):
    draw = random.Random(0)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.ppm"):
        whole = saved(tmp_path, noise, name, exif=exif).read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(draw.choice([1, 3, 10])):
                damaged[draw.randrange(min(len(damaged), draw.choice([40, 200, len(damaged)])))] = draw.randrange(256)
            (tmp_path / name).write_bytes(damaged)
            with suppress(InputError):
                assert load_image(tmp_path / name).shape[0] == 3
