"""Ask a question about a picture, keep the three best masks.

python examples/segment_one_image.py
"""

from pathlib import Path

from PIL import Image

from rea2seg import Rea2Seg

HERE = Path(__file__).parent


def main() -> None:
    pipe = Rea2Seg.from_config("mini")
    question = (HERE / "scene.txt").read_text()
    ranking = pipe(HERE / "scene.png", question)
    print(question.strip())
    for candidate, score in list(ranking)[:3]:
        print(f"IoU {score}, found by {candidate.source}: {int(candidate.mask.sum())} pixels")
    best = ranking.best
    if best is not None:
        Image.fromarray(best.mask.numpy()).save("best_mask.png")


if __name__ == "__main__":
    main()
