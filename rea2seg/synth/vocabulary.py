"""The words of SGDR-Synth: what things there are, how they may look, and what only the test split shows."""

VERSION = 1
"""Raised whenever the same seed gives other pixels or other samples."""

SPLITS = ("train", "val", "test", "no_target")

PARTS: dict[str, tuple[str, str]] = {
    "cup": ("handle", "body"),
    "mushroom": ("cap", "stem"),
    "house": ("roof", "wall"),
    "fish": ("tail", "body"),
    "key": ("head", "shaft"),
}
"""The kinds that have parts; every pixel of such a thing belongs to one of the two."""

PLURALS: dict[str, str] = {
    "ball": "balls",
    "box": "boxes",
    "triangle": "triangles",
    "star": "stars",
    "ring": "rings",
    "cup": "cups",
    "mushroom": "mushrooms",
    "house": "houses",
    "fish": "fish",
    "key": "keys",
}
KINDS = tuple(PLURALS)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 34, 40),
    "orange": (242, 128, 20),
    "yellow": (240, 222, 56),
    "green": (40, 160, 62),
    "cyan": (70, 214, 220),
    "blue": (48, 84, 220),
    "purple": (152, 58, 196),
    "white": (238, 238, 238),
}
"""RGB before light and texture."""

SIZES: dict[str, tuple[float, float]] = {"small": (0.05, 0.059), "medium": (0.076, 0.088), "large": (0.113, 0.128)}
"""The range of radii for each word, in long sides of the image. Neighbours differ by a factor of 1.27 or more."""

TEXTURES = ("plain", "striped", "dotted")

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("ball", "cyan"),
        ("box", "purple"),
        ("triangle", "orange"),
        ("star", "green"),
        ("cup", "yellow"),
        ("mushroom", "blue"),
        ("fish", "red"),
        ("key", "white"),
    }
)
"""Combinations of kind and colour that occur in the test split and in no other."""
