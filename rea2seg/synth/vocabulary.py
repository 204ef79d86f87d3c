"""The words of SGDR-Synth: what things there are, how they may look, and what only the test split shows."""

VERSION = 3
"""Raised whenever the same seed gives other pixels or other samples."""

SIZES_OF_SPLITS: dict[str, int | None] = {"train": None, "val": 400, "test": 1300, "no_target": 200}
"""How many samples belong to a split; training has no end. Test holds as many of each category as ReasonSeg-SGDR, and
110 `attribute` questions beside them."""
SPLITS = tuple(SIZES_OF_SPLITS)

PARTS: dict[str, tuple[str, str]] = {
    "cup": ("handle", "body"),
    "mushroom": ("cap", "stem"),
    "house": ("roof", "wall"),
    "fish": ("tail", "body"),
    "key": ("head", "shaft"),
    "fork": ("prongs", "shank"),
}
"""The kinds that have parts; every pixel of such a thing belongs to one of the two. No name is a first part of one kind
and a second part of another."""

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
    "hook": "hooks",
    "ladder": "ladders",
    "fork": "forks",
}
KINDS = tuple(PLURALS)
THIN = ("hook", "ladder", "fork")
"""The kinds that are made of strokes of a few pixels."""

RIDDLES: dict[str, str] = {
    "ball": "things one plays football with",
    "box": "shapes with four equal sides",
    "triangle": "shapes with three corners",
    "star": "shapes with five points",
    "ring": "things one wears on a finger",
    "cup": "things one drinks from",
    "mushroom": "things that grow in a forest",
    "house": "buildings one lives in",
    "fish": "animals that swim",
    "key": "things that open a lock",
}
"""Kinds as common sense describes them, in the plural."""

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
GREYISH = "white"
"""The colour that a shaded part has in common with many grounds: nothing has it where other things are camouflaged."""
CAMOUFLAGED = "camouflaged"
"""The colour of things that look like the ground they lie on."""

SIZES: dict[str, tuple[float, float]] = {
    "tiny": (0.0483, 0.0497),
    "small": (0.0611, 0.0629),
    "medium": (0.0772, 0.0796),
    "large": (0.0977, 0.1007),
    "huge": (0.1236, 0.1274),
}
"""The range of radii for each word, in long sides of the image. Ours: 0.049 times powers of 1.265, 1.5% up
and down, so that neighbours differ by a factor of 1.22 or more. There are as many as a crowd may have things, so that
all of its sizes may be different."""
SPACIOUS = ("medium", "large", "huge")
"""The sizes at which strokes, marks and letters can be made out."""

TEXTURES = ("plain", "striped", "dotted")

MARKS = ("cross", "diamond", "crescent")
"""What may be painted on a thing."""
FACES: dict[str, tuple[float, float, float]] = {
    "ball": (0.0, 0.0, 1.2),
    "box": (0.0, 0.0, 1.4),
    "cup": (-0.25, 0.0, 1.0),
    "house": (0.0, 0.35, 1.2),
    "star": (0.0, 0.05, 0.7),
    "triangle": (0.0, 0.25, 0.8),
}
"""Where a kind can be painted or written on: the middle (u, v) and the width, in units of its radius."""
WRITABLE = ("ball", "box", "cup", "house")
"""The kinds that may bear letters."""

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
        ("hook", "red"),
        ("ladder", "cyan"),
        ("fork", "purple"),
    }
)
"""Combinations of kind and colour that occur in the test split and in no other."""
