"""Ask a question about a picture, look at the three best masks, keep the first as best_mask.png.

python examples/segment_one_image.py
"""

from pathlib import Path

from PIL import Image

from rea2seg import Rea2Seg
from rea2seg.masks import iou
from rea2seg.synth import SgdrSynth

HERE = Path(__file__).parent


def main() -> None:
    pipe = Rea2Seg.from_config("mini")
    question = (HERE / "scene.txt").read_text()
    ranking = pipe(HERE / "scene.png", question)
    print(question.strip())
    truth = SgdrSynth("test").sample(0).truth  # the scene is the first of the test split
    assert truth is not None
    for candidate, score in list(ranking)[:3]:
        print(f"IoU: estimate {score}, truth {iou(candidate.mask, truth):.3f}; found by {candidate.source}")
    best = ranking.best
    if best is not None:
        Image.fromarray(best.mask.numpy()).save("best_mask.png")


if __name__ == "__main__":
    main()
