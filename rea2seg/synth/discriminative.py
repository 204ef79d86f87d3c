"""Discriminative questions: camouflage, occlusion and thin structures."""

import numpy as np

from rea2seg.structures import Granularity
from rea2seg.synth.filters import Described, Overlapping
from rea2seg.synth.geometric import ordinal, relative_position, relative_size, shared_attribute
from rea2seg.synth.measures import Order
from rea2seg.synth.proposals import Component, Proposal, anchor, article, be, crowd, noun
from rea2seg.synth.spatial import relation, relative_distance
from rea2seg.synth.vocabulary import CAMOUFLAGED, THIN
from rea2seg.synth.worlds import World, pick

_OF_THIN: tuple[Component, ...] = (
    relative_size,
    relative_position,
    ordinal,
    relation,
    relative_distance,
    shared_attribute,
)


def camouflage(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the camouflaged star`, `all cups that blend in with the ground`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    things, group = noun(chosen.kind, granularity), granularity == "group"
    blend, look = ("blend", "look") if group else ("blends", "looks")
    phrases = (
        f"{article(granularity)} {CAMOUFLAGED} {things}",
        f"{article(granularity)} {things} that {blend} in with the ground",
        f"{article(granularity)} {things} that {look} like the background",
    )
    clauses = (f"{be(granularity)} {CAMOUFLAGED}", f"{blend} in with the ground", f"{be(granularity)} hard to see")
    return Proposal(Described(chosen.kind, CAMOUFLAGED), phrases, clauses)


def occlusion(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the cup behind the star`, `the ring in front of the red box`, `all houses that are partly hidden`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    order: Order = pick(rng, ("behind", "behind", "in front of"))
    kind, are = chosen.kind, be(granularity)
    if rng.random() < (0.7 if granularity == "group" else 0.3):
        hidden = "partly hidden" if order == "behind" else "in front of another thing"
        phrase = f"{article(granularity)} {noun(kind, granularity)} that {are} {hidden}"
        return Proposal(Overlapping(kind, order), (phrase,), (f"{are} {hidden}",))
    other = anchor(rng, world, kind)
    if other is None:
        return None
    words = {
        "behind": (f"partly hidden behind the {other.name}", f"partly covered by the {other.name}"),
        "in front of": (f"in front of the {other.name}",),
    }
    place = pick(rng, words[order])
    phrases = (f"{article(granularity)} {noun(kind, granularity)} {place}",)
    return Proposal(Overlapping(kind, order, other), phrases, (f"{are} {place}",))


def thin_structures(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """Questions as of the other categories about things that are made of strokes."""
    proposal = pick(rng, _OF_THIN)(rng, world, granularity)
    return proposal if proposal is not None and proposal.program.kind in THIN else None
