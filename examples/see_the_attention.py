"""What the generator's prompt token attends to, as a grid of numbers and as a picture, attention.png.

python examples/see_the_attention.py
"""

from pathlib import Path

from rea2seg import Query, Rea2Seg
from rea2seg.infer import seed_points
from rea2seg.visualize import attention_map

HERE = Path(__file__).parent


def main() -> None:
    pipe = Rea2Seg.from_config("mini")
    query = Query.of(HERE / "scene.png", (HERE / "scene.txt").read_text())
    [scene] = pipe.scenes(query)
    grounding = scene.grounding
    assert grounding is not None
    for row in grounding.attention[0]:
        print(" ".join(f"{100 * value:4.1f}" for value in row))
    attention_map(query, grounding.attention[0], grounding.cells, seed_points(pipe, [scene])).save("attention.png")


if __name__ == "__main__":
    main()
