"""From a world to a picture with exact masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from rea2seg.synth.glyphs import inked
from rea2seg.synth.shapes import EXTENT, OUTLINES, Field
from rea2seg.synth.textures import add_noise, background, paint
from rea2seg.synth.vocabulary import CAMOUFLAGED, COLOURS, FACES, PARTS, SPLITS
from rea2seg.synth.worlds import THEMES, Theme, Thing, World, draw_world, pick

SIDE = 256
"""Default long side of a picture in pixels."""
MIN_VISIBLE = 0.6
"""The share of its pixels that every thing shows. Ours: with more than half in sight, kind and size can be told."""
MIN_VISIBLE_OCCLUDED = 0.45
"""The same where things are hidden on purpose. Ours: what is left of an outline still tells the kind."""
MIN_PIXELS = 40
"""The visible pixels of every thing at the default long side. Ours: in fewer, texture and outline cannot be told."""

_OUTLINE_SHADE = 0.6
# First part, second part or whole.
_PART_SHADES = (np.float32(0.74), np.float32(1.04))


@dataclass(frozen=True, eq=False)
class Rendering:
    """A picture and what every pixel of it shows.

    `instance_ids` is 0 on the background and i + 1 on thing i. `part_ids` is 0 on the background, 1 on the first part
    or on a thing without parts, 2 on the second part. `areas` counts the pixels of (first part, second part) of every
    thing before anything in front hides them, `hidden[i, j]` those of thing i that thing j hides: where several things
    lie over a pixel, the farthest of them does.
    """

    image: UInt8[np.ndarray, "h w 3"]
    instance_ids: UInt8[np.ndarray, "h w"]
    part_ids: UInt8[np.ndarray, "h w"]
    areas: Int64[np.ndarray, "n 2"]
    hidden: Int64[np.ndarray, "n n"]

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


class _Layers:
    """Instance and part ids while things are stamped into them, the farthest first, and what is counted on the way."""

    def __init__(self, count: int, height: int, width: int) -> None:
        self.ids = np.zeros((2, height, width), np.uint8)
        self.areas = np.zeros((count, 2), np.int64)
        self.hidden = np.zeros((count, count), np.int64)

    def stamp(self, thing: Thing, window: _Window, whole: Field, first: Field) -> None:
        """Write a thing over what lies behind it."""
        inside = whole < 0
        first_part = inside & (first < 0) if thing.kind in PARTS else inside
        instance, part = self.ids[:, window.rows, window.cols]
        self.hidden[:, thing.index] = np.bincount(instance[inside], minlength=len(self.areas) + 1)[1:]
        instance[inside] = thing.index + 1
        part[inside] = 2
        part[first_part] = 1
        total, first_count = int(np.count_nonzero(inside)), int(np.count_nonzero(first_part))
        self.areas[thing.index] = first_count, total - first_count

    def visible(self) -> Int64[np.ndarray, "n 2"]:
        return _visible_areas(self.ids[0], self.ids[1], len(self.areas))


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
    depth = whole * -radius
    under = canvas[:, window.rows, window.cols]
    if thing.colour == CAMOUFLAGED:
        pixels = under * _like_the_ground(thing, shade, depth)
    else:
        period = max(0.027 / thing.radius, 0.3)
        pixels = paint(COLOURS[thing.colour], shade, thing.texture, window.u, window.v, period)
        pixels *= np.where(depth < 1.4, np.float32(_OUTLINE_SHADE), np.float32(1))
        _write(thing, window, pixels)
    under += (pixels - under) * np.clip(depth + 0.5, 0, 1)


def _like_the_ground(thing: Thing, shade: Field, depth: Field) -> Field:
    """How much brighter or darker than the ground a camouflaged thing is, pixel by pixel.

    The numbers are ours: a step of 13% and a faint outline are found by whoever looks for them.
    """
    tone = 1.13 if thing.mirrored else 0.87
    outline = np.where(depth < 1.4, np.float32(0.86), np.float32(1))
    faint: Field = (tone + 0.6 * (shade - 1)) * outline
    return faint.astype(np.float32)


def _write(thing: Thing, window: _Window, pixels: Float32[np.ndarray, "3 h w"]) -> None:
    """Put the mark or the letters of a thing onto its surface, dark on bright colours and bright on dark ones."""
    text = thing.mark or thing.letters
    if text:
        flip = np.float32(-1 if thing.mirrored else 1)
        u, v, width = FACES[thing.kind]
        red, green, blue = COLOURS[thing.colour]
        ink = 24.0 if 2 * red + 5 * green + blue > 8 * 105 else 248.0
        # Mirrored things are written on like others: what is to be read keeps its sides.
        pixels[:, inked(text, window.u * flip - np.float32(u) * flip, window.v - np.float32(v), width)] = ink


def _extent(world: World, side: int) -> tuple[int, int]:
    """Height and width in pixels."""
    return round(world.height * side), round(world.width * side)


def render(world: World, side: int = SIDE) -> Rendering:
    """Draw a world, `side` pixels along its longer side. The same world gives the same bytes."""
    height, width = _extent(world, side)
    rng = np.random.default_rng(world.seed)
    canvas = background(rng, height, width)
    layers = _Layers(len(world.things), height, width)
    for thing in sorted(world.things, key=lambda thing: -thing.depth):
        window = _window(thing, side, height, width)
        whole, first = OUTLINES[thing.kind](window.u, window.v)
        layers.stamp(thing, window, whole, first)
        _blend(thing, window, world, whole, first, canvas)
    return Rendering(add_noise(rng, canvas), layers.ids[0], layers.ids[1], layers.areas, layers.hidden)


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
    layers = _Layers(len(world.things), height, width)
    for thing in sorted(world.things, key=lambda thing: -thing.depth):
        window = _window(thing, side, height, width)
        layers.stamp(thing, window, *OUTLINES[thing.kind](window.u, window.v))
    visible, whole = layers.visible().sum(1), layers.areas.sum(1)
    least = MIN_VISIBLE_OCCLUDED if world.theme == "occlusion" else MIN_VISIBLE
    enough = visible * (SIDE / side) ** 2 >= 1.2 * MIN_PIXELS
    return bool(np.all((visible >= (least + 0.05) * whole) & enough))


_ANY_THEME: tuple[Theme, ...] = (*THEMES, "plain", "plain", "plain", "plain")
"""Every second world is a plain one, because most questions can be asked there."""


def sample_world(rng: np.random.Generator, split: str, theme: Theme | None = None) -> World:
    """A random world in which everything can be seen, of any theme if none is given.

    Only `test` shows the held-out combinations.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
    chosen = pick(rng, _ANY_THEME) if theme is None else theme
    while True:
        world = draw_world(rng, novel=split == "test", theme=chosen)
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
    shares = rendering.hidden / rendering.areas.sum(1, keepdims=True)
    hidden = tuple(tuple(float(share) for share in row) for row in shares)
    return replace(world, width=width / side, height=height / side, things=things, hidden=hidden)
