"""Rank masks that came from elsewhere: here, every object of a scene of SGDR-Synth.

python examples/rank_your_own_masks.py
"""

from rea2seg import Candidate, Query, Rea2Seg, rank
from rea2seg.ranking import ByEvaluator
from rea2seg.synth import SgdrSynth


def main() -> None:
    sample = SgdrSynth("test").sample(0)
    masks = [Candidate(region.mask, "given", quality=1.0) for region in sample.instances]
    selector = Rea2Seg.from_config("mini").selector
    assert isinstance(selector, ByEvaluator)
    ranking = rank(Query(sample.image, sample.query), masks, selector.evaluator)
    print(sample.query)
    for index, score in zip(ranking.indices, ranking.scores, strict=True):
        print(f"{score.iou:.2f}  {sample.instances[index].label}")


if __name__ == "__main__":
    main()
