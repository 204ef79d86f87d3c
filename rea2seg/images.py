"""Pictures from outside, made into one thing: RGB bytes in the orientation in which a person sees them."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from rea2seg.errors import InputError, reason

MEGAPIXELS = 50
"""Ours: the logits of three masks at this size take 600 MB."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Left out on purpose: formats that start other programs (EPS) or that no camera or web page makes."""

DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error)
"""What Pillow raises on damaged files."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""


ImageSource = str | Path | Image.Image | np.ndarray | Tensor
"""What a person may hand in as an image."""


def to_picture(image: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """RGB bytes as a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def load_image(source: ImageSource) -> UInt8[Tensor, "3 h w"]:
    """RGB bytes of a file, a Pillow image, an (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) array of uint8, or a (3, h, w)
    tensor of them.

    EXIF rotation is applied, transparency is put on white (pages are white, and black would hide dark cut-outs), 16-bit
    grey is scaled by 255 / 65535, and of animations the first frame is taken.
    """
    if isinstance(source, Tensor):
        return _from_tensor(source)
    with warnings.catch_warnings():
        # Our own limit is lower than Pillow's, and other oddities of a file that decodes are not worth a warning.
        warnings.simplefilter("ignore")
        if isinstance(source, np.ndarray):
            return _to_rgb_bytes(_from_array(source), "the array")
        if isinstance(source, Image.Image):
            return _to_rgb_bytes(source, "the image")
        if not isinstance(source, str | Path):
            kind = type(source).__name__
            raise InputError(f"an image is a path, a Pillow image, an array or a tensor of uint8, not a {kind}")
        name = f"image {str(source)!r}"
        _check_file(source, name)
        try:
            with Image.open(source, formats=FORMATS) as image:
                return _to_rgb_bytes(image, name)
        except Image.DecompressionBombError as error:
            raise InputError(_too_large(name)) from error
        except UnidentifiedImageError as error:
            known = ", ".join(FORMATS)
            raise InputError(f"{name} is not a picture that can be read ({known}), or it is damaged") from error
        except DAMAGED as error:
            raise InputError(f"{name} cannot be read: {reason(error)}") from error


def _check_file(source: str | Path, name: str) -> None:
    if "://" in str(source):
        raise InputError(f"{name} is an address: download it and pass the file")
    path = Path(source)
    try:
        if not path.exists():
            raise InputError(f"{name} does not exist")
        if not path.is_file():
            raise InputError(f"{name} is not a file")
        if path.stat().st_size == 0:
            raise InputError(f"{name} is an empty file")
    except (OSError, ValueError) as error:  # names that are too long or hold a NUL
        raise InputError(f"{name} cannot be read: {reason(error)}") from error


def _from_tensor(tensor: Tensor) -> UInt8[Tensor, "3 h w"]:
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or len(tensor) != 3:
        shape = tuple(tensor.shape)
        raise InputError(f"an image tensor must be (3, height, width) of uint8, not {shape} of {tensor.dtype}")
    _check_size(tensor.shape[2], tensor.shape[1], "the tensor")
    return tensor.cpu().contiguous()


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"an image array must be (height, width, 3) of uint8, not {array.shape} of {array.dtype}")
    _check_size(array.shape[1], array.shape[0], "the array")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _to_rgb_bytes(image: Image.Image, name: str) -> UInt8[Tensor, "3 h w"]:
    """Checks the size before the pixels are decoded."""
    _check_size(image.width, image.height, name)
    try:
        rgb = _upright(_to_rgb(image, name), _orientation(image))
    except DAMAGED as error:
        raise InputError(f"{name} cannot be read: {reason(error)}") from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def _check_size(width: int, height: int, name: str) -> None:
    if width * height == 0:
        raise InputError(f"{name} has no pixels ({width} x {height})")
    if width * height > MEGAPIXELS * 1_000_000:
        raise InputError(_too_large(name, f": {width} x {height}"))


def _too_large(name: str, size: str = "") -> str:
    return f"{name} has more than {MEGAPIXELS} megapixels{size}; make it smaller"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (*DAMAGED, TypeError):
        # Viewers show a picture whose EXIF block is damaged, as it was stored.
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF block anew, which damaged ones do not survive.
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_deep_grey(image, name)
    if image.mode == "F":
        raise InputError(
            f"{name} holds decimal numbers, of which black and white are unknown; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """16 bits to 8 by scale, where Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"{name} holds 32-bit numbers, of which black and white are unknown; save it with 8 or 16 bits"
        )
    # Equal to round(value * 255 / 65535), since 65535 = 255 * 257.
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
