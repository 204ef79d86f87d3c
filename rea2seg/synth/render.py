"""From a world to a picture with exact masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from rea2seg.synth.shapes import EXTENT, OUTLINES, Field
from rea2seg.synth.textures import add_noise, background, paint
from rea2seg.synth.vocabulary import COLOURS, PARTS, SPLITS
from rea2seg.synth.worlds import Thing, World, draw_world

SIDE = 256
"""Default long side of a picture in pixels."""
MIN_VISIBLE = 0.6
"""The share of its pixels that every thing shows. Ours: with more than half in sight, kind and size can be told."""
MIN_PIXELS = 40
"""The visible pixels of every thing at the default long side. Ours: in fewer, texture and outline cannot be told."""

_OUTLINE_SHADE = 0.6
# First part, second part or whole.
_PART_SHADES = (np.float32(0.66), np.float32(1.04))


@dataclass(frozen=True, eq=False)
class Rendering:
    """A picture and what every pixel of it shows.

    `instance_ids` is 0 on the background and i + 1 on thing i. `part_ids` is 0 on the background, 1 on the first part
    or on a thing without parts, 2 on the second part. `areas` counts the pixels of (first part, second part) of every
    thing before anything in front hides them.
    """

    image: UInt8[np.ndarray, "h w 3"]
    instance_ids: UInt8[np.ndarray, "h w"]
    part_ids: UInt8[np.ndarray, "h w"]
    areas: Int64[np.ndarray, "n 2"]

    def visible_areas(self) -> Int64[np.ndarray, "n 2"]:
        """The pixels of (first part, second part) of every thing that can be seen."""
        return _visible_areas(self.instance_ids, self.part_ids, len(self.areas))

    def mask(self, index: int, part: int | None = None) -> Bool[np.ndarray, "h w"]:
        """Where thing `index` is seen, or only its part 1 or 2."""
        inside: Bool[np.ndarray, "h w"] = self.instance_ids == index + 1
        return inside if part is None else inside & (self.part_ids == part)


@dataclass(frozen=True)
class _Window:
    """The pixels a thing may cover, and their coordinates relative to its centre in units of its radius."""

    rows: slice
    cols: slice
    right: Float32[np.ndarray, "1 w"]
    down: Float32[np.ndarray, "h 1"]
    u: Field
    v: Field


def _window(thing: Thing, side: int, height: int, width: int) -> _Window:
    reach = EXTENT * thing.radius * side * 1.12 + 1
    x, y = thing.x * side, thing.y * side
    rows = slice(max(0, int(y - reach)), min(height, int(y + reach) + 2))
    cols = slice(max(0, int(x - reach)), min(width, int(x + reach) + 2))
    scale = 1 / (thing.radius * side)
    right = (np.arange(cols.start, cols.stop, dtype=np.float32) + (0.5 - x)) * scale
    down = (np.arange(rows.start, rows.stop, dtype=np.float32) + (0.5 - y)) * scale
    # cos and sin from the tangent of half the angle: exact arithmetic where math.cos may differ in the last bit.
    norm = 1 + thing.tilt * thing.tilt
    cos, sin = (1 - thing.tilt * thing.tilt) / norm, 2 * thing.tilt / norm
    flip = -1 if thing.mirrored else 1
    u = (right * (cos * flip))[None, :] + (down * (sin * flip))[:, None]
    v = (down * cos)[:, None] - (right * sin)[None, :]
    return _Window(rows, cols, right[None, :], down[:, None], u, v)


def _shade(thing: Thing, window: _Window, light: tuple[float, float], first: Field) -> Field:
    """Brightness of every pixel: higher towards the light, and different for the two parts."""
    shade: Field = 1 + window.right * (0.16 * light[0]) + window.down * (0.16 * light[1])
    if thing.kind == "ball":
        x, y = window.right - 0.4 * light[0], window.down - 0.4 * light[1]
        shade = shade + 0.16 - 0.2 * (x * x + y * y)
    if thing.kind in PARTS:
        shade = shade * np.where(first < 0, *_PART_SHADES)
    return np.broadcast_to(shade, first.shape)


def _stamp(
    thing: Thing, window: _Window, whole: Field, first: Field, ids: UInt8[np.ndarray, "2 height width"]
) -> tuple[int, int]:
    """Write a thing into the instance and part ids; returns the pixels of its two parts."""
    inside = whole < 0
    first_part = inside & (first < 0) if thing.kind in PARTS else inside
    instance, part = ids[:, window.rows, window.cols]
    instance[inside] = thing.index + 1
    part[inside] = 2
    part[first_part] = 1
    total, first_count = int(np.count_nonzero(inside)), int(np.count_nonzero(first_part))
    return first_count, total - first_count


def _blend(
    thing: Thing,
    window: _Window,
    world: World,
    whole: Field,
    first: Field,
    canvas: Float32[np.ndarray, "3 height width"],
) -> None:
    """Paint a thing over the canvas with smooth edges."""
    radius = thing.radius * max(canvas.shape[1:])
    shade = _shade(thing, window, world.light, first)
    period = max(0.027 / thing.radius, 0.3)
    pixels = paint(COLOURS[thing.colour], shade, thing.texture, window.u, window.v, period)
    depth = whole * -radius
    pixels *= np.where(depth < 1.4, np.float32(_OUTLINE_SHADE), np.float32(1))
    under = canvas[:, window.rows, window.cols]
    under += (pixels - under) * np.clip(depth + 0.5, 0, 1)


def _extent(world: World, side: int) -> tuple[int, int]:
    """Height and width in pixels."""
    return round(world.height * side), round(world.width * side)


def render(world: World, side: int = SIDE) -> Rendering:
    """Draw a world, `side` pixels along its longer side. The same world gives the same bytes."""
    height, width = _extent(world, side)
    rng = np.random.default_rng(world.seed)
    canvas = background(rng, height, width)
    ids = np.zeros((2, height, width), np.uint8)
    areas = np.zeros((len(world.things), 2), np.int64)
    for thing in sorted(world.things, key=lambda thing: -thing.depth):
        window = _window(thing, side, height, width)
        whole, first = OUTLINES[thing.kind](window.u, window.v)
        areas[thing.index] = _stamp(thing, window, whole, first, ids)
        _blend(thing, window, world, whole, first, canvas)
    return Rendering(add_noise(rng, canvas), ids[0], ids[1], areas)


def _visible_areas(
    instance_ids: UInt8[np.ndarray, "h w"], part_ids: UInt8[np.ndarray, "h w"], count: int
) -> Int64[np.ndarray, "n 2"]:
    codes = instance_ids.astype(np.int64) * 3 + part_ids
    counts = np.bincount(codes.ravel(), minlength=3 * (count + 1)).reshape(-1, 3)
    return np.ascontiguousarray(counts[1 : count + 1, 1:])


def _all_visible(world: World) -> bool:
    """Whether everything shows enough of itself, judged on ids alone at a coarser scale (with a reserve for that)."""
    side = 128
    height, width = _extent(world, side)
    ids = np.zeros((2, height, width), np.uint8)
    areas = np.zeros((len(world.things), 2), np.int64)
    for thing in sorted(world.things, key=lambda thing: -thing.depth):
        window = _window(thing, side, height, width)
        areas[thing.index] = _stamp(thing, window, *OUTLINES[thing.kind](window.u, window.v), ids)
    visible, whole = _visible_areas(ids[0], ids[1], len(areas)).sum(1), areas.sum(1)
    enough = visible * (SIDE / side) ** 2 >= 1.2 * MIN_PIXELS
    return bool(np.all((visible >= (MIN_VISIBLE + 0.05) * whole) & enough))


def sample_world(rng: np.random.Generator, split: str) -> World:
    """A random world in which everything can be seen. Only `test` shows the held-out combinations."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
    while True:
        world = draw_world(rng, novel=split == "test")
        if world is not None and _all_visible(world):
            return world


def look(world: World, rendering: Rendering) -> World:
    """The world as it is seen: its size is that of the pixels, its things are where their visible masks are."""
    ids = rendering.instance_ids.ravel()
    height, width = rendering.instance_ids.shape
    side = max(height, width)
    count = len(world.things) + 1
    pixels = np.bincount(ids, minlength=count)
    cols = np.bincount(ids, np.tile(np.arange(width), height), minlength=count)
    rows = np.bincount(ids, np.repeat(np.arange(height), width), minlength=count)
    things = tuple(
        replace(
            thing,
            x=float((cols[thing.index + 1] / pixels[thing.index + 1] + 0.5) / side),
            y=float((rows[thing.index + 1] / pixels[thing.index + 1] + 0.5) / side),
        )
        for thing in world.things
    )
    return replace(world, width=width / side, height=height / side, things=things)
