"""Losses as named functions; each stage shows its weights in one table.

Mask losses are taken on a lattice of points instead of on all pixels: the truth is looked up exactly at the points and
the logits are interpolated there. The lattice is coarse but shifted at random from step to step, so thin shapes are
supervised at full resolution (area-downsampled targets would lose them).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.1
"""What cosine similarities are divided by before a softmax. Ours."""


def at_lattice(
    lowres: Float[Tensor, "b *n h w"], shift: Float[Tensor, "b 2"], cells: int
) -> Float[Tensor, "b *n cells cells"]:
    """Logits interpolated at the centres of a lattice of `cells` x `cells`, moved by `shift` (x, y) cells."""
    batch, height, width = lowres.shape[0], lowres.shape[-2], lowres.shape[-1]
    ys, xs = torch.meshgrid(torch.arange(cells) + 0.5, torch.arange(cells) + 0.5, indexing="ij")
    grid = 2 * (torch.stack([xs, ys], dim=-1).to(lowres.device) + shift[:, None, None]) / cells - 1
    flat = lowres.reshape(batch, -1, height, width)
    sampled = functional.grid_sample(flat, grid.to(flat.dtype), padding_mode="border", align_corners=False)
    return sampled.reshape(*lowres.shape[:-2], cells, cells)


def mask_bce(logits: Float[Tensor, "*n h w"], truth: Bool[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Binary cross-entropy, mean over the points of each mask."""
    return functional.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none").mean((-2, -1))


def mask_focal(
    logits: Float[Tensor, "*n h w"], truth: Bool[Tensor, "*n h w"], gamma: float = 2.0
) -> Float[Tensor, "*n"]:
    """Focal loss (Lin et al. 2017) without class weights, mean over the points of each mask."""
    target = truth.to(logits.dtype)
    loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = (target - logits.sigmoid()).abs()
    return (missed**gamma * loss).mean((-2, -1))


def mask_dice(
    logits: Float[Tensor, "*n h w"], truth: Bool[Tensor, "*n h w"], smooth: float = 1.0
) -> Float[Tensor, "*n"]:
    """1 - Dice coefficient of each mask, smoothed by `smooth` points."""
    probability, target = logits.sigmoid(), truth.to(logits.dtype)
    overlap = (probability * target).sum((-2, -1))
    return 1 - (2 * overlap + smooth) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + smooth)


def lattice_iou(logits: Float[Tensor, "*n h w"], truth: Bool[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """IoU of logits > 0 with the truth on the lattice: what SAM's quality head learns to predict. No gradient."""
    predicted = logits.detach() > 0
    union = (predicted | truth).sum((-2, -1))
    return (predicted & truth).sum((-2, -1)) / union.clamp(min=1)


def pointing(
    state: Float[Tensor, "n d"], tokens: Float[Tensor, "n t d"], inside: Bool[Tensor, "n t"]
) -> Float[Tensor, ""]:
    """Contrastive loss between the prompt state and the image tokens inside the target (mini only).

    -log of the softmax mass, over all image tokens of the picture, that cosine similarity puts inside the target.
    Questions without a token inside are left out.
    """
    return contrastive(cosines(state, tokens), inside)


def cosines(states: Float[Tensor, "n d"], tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n t"]:
    """The cosine similarity of each state with its own tokens, in float32: a temperature magnifies what is rounded."""
    with torch.autocast(states.device.type, enabled=False):
        return torch.einsum("nd,ntd->nt", directions(states), directions(tokens))


def directions(vectors: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Vectors of length 1, in float32."""
    return functional.normalize(vectors.float(), dim=-1)


def contrastive(similarity: Float[Tensor, "n t"], inside: Bool[Tensor, "n t"]) -> Float[Tensor, ""]:
    """-log of the softmax mass inside, over all t."""
    return mass_inside(contrast(similarity), inside)


def contrast(similarity: Float[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Similarities as shares of one."""
    return (similarity / TEMPERATURE).softmax(-1)


def mass_inside(weights: Float[Tensor, "n t"], inside: Bool[Tensor, "n t"]) -> Float[Tensor, ""]:
    """-log of the share of the weights that lies inside the target, mean over rows with a token inside; 0 without."""
    share = (weights * inside).sum(-1) / weights.sum(-1).clamp(min=1e-6)
    return _surprise(share[:, None], inside.any(-1, keepdim=True))


def mass_in_each(weights: Float[Tensor, "n t"], members: Int[Tensor, "n t"]) -> Float[Tensor, ""]:
    """`mass_inside` where a target has several members, so that none of a group is left out: 0 if each has its share.

    `members` numbers the members of each row from 1 on; what is outside has 0. For a single one both are the same.
    """
    count, numbers = members.amax(-1, keepdim=True), torch.arange(int(members.max()) + 1, device=members.device)
    mass = torch.zeros(len(members), len(numbers), device=weights.device).scatter_add(1, members, weights.float())
    share = count * mass / weights.sum(-1, keepdim=True).clamp(min=1e-6)
    return _surprise(share, (numbers > 0) & (numbers <= count))


def _surprise(share: Float[Tensor, "n m"], there: Bool[Tensor, "n m"]) -> Float[Tensor, ""]:
    """-log of the shares that are there, mean over those of a row, then over the rows that have any; 0 without."""
    of_rows = -(share.clamp(min=1e-6).log() * there).sum(-1) / there.sum(-1).clamp(min=1)
    return of_rows.sum() / there.any(-1).sum().clamp(min=1)


def hits(weights: Float[Tensor, "n t"], inside: Bool[Tensor, "n t"]) -> Float[Tensor, ""]:
    """How often the token with the largest weight lies inside, of the rows with a token inside; 0 without."""
    found = inside.gather(1, weights.argmax(1, keepdim=True))
    return found.sum() / inside.any(-1).sum().clamp(min=1)
