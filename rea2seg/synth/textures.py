"""Surfaces and backgrounds. Elementary arithmetic on single pixels: every processor draws the same bits."""

import numpy as np
from jaxtyping import Float32, UInt8

from rea2seg.synth.shapes import Field

_DARK_BAND = 0.55
_LIGHT_DOT = 0.65
_DARK_DOT = 0.5


def paint(
    colour: tuple[int, int, int], shade: Field, texture: str, u: Field, v: Field, period: float
) -> Float32[np.ndarray, "3 h w"]:
    """The colour of every pixel of a surface: RGB in 0 to 255 before noise. `period` is in units of u and v."""
    if texture == "striped":
        shade = np.where(_fraction(v + u * 0.5, period) < 0.45, shade * _DARK_BAND, shade)
    pixels: Float32[np.ndarray, "3 h w"] = np.array(colour, np.float32)[:, None, None] * shade
    if texture == "dotted":
        dots = _dots(u, v, period)
        # Light dots would not show on white.
        pixels += pixels * dots * -_DARK_DOT if min(colour) > 200 else (255 - pixels) * dots * _LIGHT_DOT
    return pixels


def _fraction(x: Field, period: float) -> Field:
    """Position within the period, in [0, 1)."""
    turns = x * (1 / period)
    fraction: Field = turns - np.floor(turns)
    return fraction


def _dots(u: Field, v: Field, period: float) -> Field:
    """1 on dots of a square lattice, 0 elsewhere."""
    across, down = _fraction(u, period) - 0.5, _fraction(v, period) - 0.5
    return (across * across + down * down < 0.085).astype(np.float32)


def background(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "3 h w"]:
    """A muted ground: a gradient, slow waves, faint lines and faint patches. RGB about 60 to 170."""
    ground = _waves(rng, height, width)
    x = np.arange(width, dtype=np.float32) * (1 / width)
    y = np.arange(height, dtype=np.float32)[:, None] * (1 / height)
    slopes = (rng.random(2) * 50 - 25).astype(np.float32)
    ground += x * slopes[0] + y * slopes[1]
    for _ in range(int(rng.integers(2, 5))):
        _add_line(rng, ground, x, y)
    for _ in range(int(rng.integers(2, 6))):
        _add_patch(rng, ground)
    level = 85 + 45 * rng.random()
    tint = (level + rng.random(3) * 30 - 15).astype(np.float32)
    picture: Float32[np.ndarray, "3 h w"] = tint[:, None, None] + ground
    return picture


def _waves(rng: np.random.Generator, height: int, width: int) -> Field:
    """Values at 7 x 7 knots, interpolated linearly along x and then along y."""
    knots = (rng.random((7, 7)) * 36 - 18).astype(np.float32)
    return _stretch(_stretch(knots.T, width).T, height)


def _stretch(values: Float32[np.ndarray, "n m"], length: int) -> Float32[np.ndarray, "length m"]:
    place = np.arange(length, dtype=np.float32) * ((len(values) - 1) / length)
    below = place.astype(np.int64)
    share = (place - below.astype(np.float32))[:, None]
    low = values[below]
    stretched: Float32[np.ndarray, "length m"] = low + (values[below + 1] - low) * share
    return stretched


def _add_line(
    rng: np.random.Generator,
    ground: Field,
    x: Float32[np.ndarray, " w"],
    y: Float32[np.ndarray, "h 1"],
) -> None:
    """A faint straight line across the whole image, drawn into `ground`."""
    slope, offset, strength, half = (float(value) for value in rng.random(4))
    along, across = (x, y) if rng.random() < 0.5 else (y, x)
    distance = np.abs(across - along * (slope - 0.5) - (1.4 * offset - 0.2))
    ground += (distance < 0.003 + 0.008 * half) * np.float32(44 * strength - 22)


def _add_patch(rng: np.random.Generator, ground: Field) -> None:
    """A faint soft patch without an edge, drawn into `ground`."""
    height, width = ground.shape
    row, col, radius, strength = (float(value) for value in rng.random(4))
    radius = (0.05 + 0.12 * radius) * max(height, width)
    top, left = int(row * height), int(col * width)
    reach = int(radius)
    rows = slice(max(0, top - reach), min(height, top + reach))
    cols = slice(max(0, left - reach), min(width, left + reach))
    dy = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - top) * (1 / radius)
    dx = (np.arange(cols.start, cols.stop, dtype=np.float32) - left) * (1 / radius)
    bump = np.maximum(1 - dx * dx - dy * dy, 0)
    ground[rows, cols] += bump * (50 * strength - 25)


def add_noise(rng: np.random.Generator, image: Float32[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with sensor noise, rounded to bytes and laid out as rows of RGB pixels."""
    raw = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    # The sum of the two halves of a byte: a triangle on 0 to 30 with a standard deviation of 6.5.
    grain = (raw & np.uint8(15)) + (raw >> np.uint8(4))
    strength = 0.3 + 0.9 * float(rng.random())
    noisy = image + (grain.astype(np.float32) - 15) * strength
    return np.ascontiguousarray(np.clip(noisy, 0, 255).astype(np.uint8).transpose(1, 2, 0))
