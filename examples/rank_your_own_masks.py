"""Rank masks that came from elsewhere: here, every object of a scene of SGDR-Synth.

python examples/rank_your_own_masks.py
"""

from rea2seg import Candidate, Query, Rea2Seg, rank
from rea2seg.synth import SgdrSynth


def main() -> None:
    sample = SgdrSynth("test").sample(0)
    masks = [Candidate(region.mask) for region in sample.instances]
    evaluator = Rea2Seg.from_config("mini").selector.evaluator
    ranking = rank(Query.of(sample.image, sample.query), masks, evaluator)
    print(sample.query)
    for index, score in zip(ranking.indices, ranking.scores, strict=True):
        print(f"{score}  {sample.instances[index].label}")


if __name__ == "__main__":
    main()
