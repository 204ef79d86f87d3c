"""Models of mini that go on where others stand: an evaluator where a generator does, towers where coarser ones do."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional
from transformers import InternVLForConditionalGeneration, LlamaModel, LlavaForConditionalGeneration, Qwen2Model
from transformers.models.llama.modeling_llama import LlamaMLP

from rea2seg.errors import ConfigError

TOWER_NAMES = {
    "embeddings.patch_embedding.": "embeddings.patch_embeddings.projection.",
    "encoder.layers.": "encoder.layer.",
    ".self_attn.out_proj.": ".attention.projection_layer.",
    ".self_attn.": ".attention.",
    ".layer_norm1.": ".layernorm_before.",
    ".layer_norm2.": ".layernorm_after.",
}
"""Parts of names in CLIP's tower, and what InternVL's tower calls them."""
TOWERS_ALIKE = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
"""What two vision towers must have in common, beside the number of their tokens."""
ALIKE = ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "rms_norm_eps")
"""What two language models must have in common for one to go on where the other stands."""


@torch.no_grad()
def take_over_language(to: Qwen2Model, of: LlamaModel) -> None:
    """Make a Qwen2 compute what a Llama computes: zero biases, and further layers that add nothing at first.

    Where its MLPs are narrower, they keep the largest neurons; then it is not quite the same function. Raises
    ConfigError where the two do not fit.
    """
    alike = all(getattr(to.config, name) == getattr(of.config, name) for name in ALIKE)
    width = to.config.intermediate_size
    if not alike or len(to.layers) < len(of.layers) or width > of.config.intermediate_size:
        raise ConfigError("the generator's language model does not fit into the evaluator's")
    state = of.state_dict()
    for number, layer in enumerate(of.layers):
        kept, mlp = largest_neurons(layer.mlp, width), f"layers.{number}.mlp."
        for name in ("gate_proj", "up_proj"):
            state[f"{mlp}{name}.weight"] = state[f"{mlp}{name}.weight"][kept]
        state[f"{mlp}down_proj.weight"] = state[f"{mlp}down_proj.weight"][:, kept]
    if to.load_state_dict(state, strict=False).unexpected_keys:
        raise ConfigError("the evaluator's language model is none that could take over the generator's")
    for number, layer in enumerate(to.layers):
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.bias.zero_()
        if number >= len(of.layers):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()


def largest_neurons(mlp: LlamaMLP, count: int) -> Int[Tensor, " count"]:
    """The neurons of a gated MLP with the largest products of their three weights' norms, in their order."""
    size = mlp.down_proj.weight.norm(dim=0) * mlp.up_proj.weight.norm(dim=1) * mlp.gate_proj.weight.norm(dim=1)
    largest: Tensor = size.topk(count).indices
    return largest.sort().values


@torch.no_grad()
def take_over_tower(to: InternVLForConditionalGeneration, of: LlavaForConditionalGeneration) -> None:
    """Start InternVL's tower and projector from LLaVA's of the same size.

    Not the same function: CLIP normalises before its first layer, InternVL after its last one, which is made up for by
    the spread of the tokens of a plain picture. Imitation mends the rest. Raises ConfigError where the two do not fit.
    """
    source, target = of.model.vision_tower, to.model.vision_tower
    alike = all(getattr(target.config, name) == getattr(source.config, name) for name in TOWERS_ALIKE)
    places = source.embeddings.position_embedding.weight
    if not alike or target.embeddings.position_embeddings.shape[1:] != places.shape:
        raise ConfigError("the generator's vision tower does not fit into the evaluator's")
    side = of.config.vision_config.image_size
    spread = source(torch.zeros(1, 3, side, side)).last_hidden_state.std(-1).mean()
    state = target.state_dict()
    for name, value in source.state_dict().items():
        for theirs, ours in TOWER_NAMES.items():
            name = name.replace(theirs, ours)
        if name in state:
            state[name].copy_(value)
    gain = source.pre_layrnorm.weight
    target.embeddings.cls_token.copy_(gain * source.embeddings.class_embedding)
    target.embeddings.position_embeddings.copy_(gain * places)
    target.embeddings.patch_embeddings.projection.weight.mul_(gain[:, None, None, None])
    target.embeddings.patch_embeddings.projection.bias.copy_(source.pre_layrnorm.bias)
    for layer in target.encoder.layer:
        layer.lambda_1.fill_(1.0)
        layer.lambda_2.fill_(1.0)
    to.model.multi_modal_projector.load_state_dict(of.model.multi_modal_projector.state_dict(), strict=False)
    to.model.multi_modal_projector.layer_norm.weight.fill_(spread)


@torch.no_grad()
def see_at(model: InternVLForConditionalGeneration, side: int) -> None:
    """Let an evaluator's tower go on with pictures of `side` pixels; its places are stretched over them.

    Until then InternVL stretches them anew for every picture of another side than its own. Raises ConfigError where
    `side` is no multiple of the patch.
    """
    config, embeddings = model.config, model.model.vision_tower.embeddings
    patch = config.vision_config.patch_size[0]
    if side % patch:
        raise ConfigError(f"a side of {side} pixels does not divide into patches of {patch}: take a multiple")
    tokens = torch.empty(1, 1 + (side // patch) ** 2, config.vision_config.hidden_size)
    embeddings.position_embeddings = nn.Parameter(embeddings.interpolate_pos_encoding(tokens, side, side).clone())
    config.vision_config.image_size = [side, side]
    config.image_seq_length = round((side // patch * config.downsample_ratio) ** 2)


@torch.no_grad()
def take_over_sam(to: Sam, of: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a SAM for a model that has as many layers and channels, but sees more or fewer patches.

    Places are interpolated, and offsets between patches are looked up where they lie in the picture, so that the model
    sees at first what it saw, in another resolution.
    """
    state, wanted = dict(of), to.state_dict()
    places = "image_encoder.pos_embed"
    grids = state[places].shape[1], wanted[places].shape[1]
    channels_first = state[places].float().permute(0, 3, 1, 2)
    stretched = functional.interpolate(channels_first, size=(grids[1],) * 2, mode="bicubic", align_corners=False)
    state[places] = stretched.permute(0, 2, 3, 1)
    for name in (name for name in state if ".attn.rel_pos_" in name):
        state[name] = _offsets(state[name].float(), len(wanted[name]), grids[0] / grids[1])
    return state


def _offsets(table: Float[Tensor, "offsets c"], count: int, scale: float) -> Float[Tensor, "count c"]:
    """A table of 2 r - 1 offsets between patches as one of `count`, each patch being `scale` old ones wide."""
    at = (torch.arange(count) - count // 2) * scale + len(table) // 2
    at = at.clamp(0, len(table) - 1)
    below = at.floor().long().clamp(max=len(table) - 2)
    looked_up: Tensor = torch.lerp(table[below], table[below + 1], (at - below)[:, None])
    return looked_up
