"""The stages of configs/train, shrunk to seconds: same files, same folders, tiny numbers."""

import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from transformers import PreTrainedTokenizerBase

from tests.training.conftest import CLIP, LANGUAGE, SAM
from training import evaluator, generator, segmenter, vision
from training.scoring_data import scoring_data
from training.ship import ship
from training.stage import fit

SCORING: dict[str, Any] = {
    "weights": Path("runs/mini/shipped"),
    "out": Path("runs/mini/scoring"),
    "scenes": 3,
    "per_scene": 2,
}
CONFIGS = Path(__file__).parents[2] / "configs" / "train"
FIVE_LAYERS = {**vars(LANGUAGE), "depth": 5}
"""Mini's pipeline reads the attention of layers 3 and 4; the evaluator, with nine, goes on from this model."""
TINY: dict[str, tuple[Callable[[], object], dict[str, Any]]] = {
    "segmenter": (
        lambda: fit(segmenter.SegmenterStage, segmenter.PromptedScenes),
        {"model.config": vars(SAM), "data.side": SAM.image_size, "data.cells": 16, "data.prompts": 2},
    ),
    "vision_generator": (
        lambda: fit(vision.VisionStage, vision.LabelledScenes),
        {
            "model.tower": vars(CLIP),
            "model.language": FIVE_LAYERS,
            "model.prompt_width": SAM.channels,
            "data.tower": vars(CLIP),
            "data.grid": 4,
        },
    ),
    "vision_evaluator": (
        lambda: fit(vision.VisionStage, vision.LabelledScenes),
        {
            "model.tower": vars(CLIP),
            "model.language": {**FIVE_LAYERS, "depth": 9},
            "data.tower": vars(CLIP),
            "data.grid": 4,
            "data.mask_side": 32,
            "data.masks": 1,
        },
    ),
    "generator": (
        lambda: fit(generator.GeneratorStage, generator.Questions),
        {
            "model.masks_from": 1,
            "data.side": CLIP.side,
            "data.grid": 4,
            "data.canvas": SAM.image_size,
            "data.cells": 16,
            "data.count": 2,
        },
    ),
    "evaluator_stage1": (
        lambda: fit(evaluator.EvaluatorStage, evaluator.Judgements),
        {"data.tasks": {"reason": {"share": 1.0, "questions": 4}}},  # Two steps are to reach all layers.
    ),
    "evaluator_stage2": (lambda: fit(evaluator.EvaluatorStage, evaluator.Judgements), {"model.rank": 2}),
}
LARGER = {**vars(CLIP), "side": 2 * CLIP.side}
TINY["vision_evaluator_fine"] = (
    TINY["vision_evaluator"][0],
    TINY["vision_evaluator"][1] | {"model.tower": LARGER, "data.tower": LARGER, "data.grid": 8},
)
TINY["vision_evaluator_small"] = (
    TINY["vision_evaluator"][0],
    TINY["vision_evaluator"][1] | {"model.language": {**FIVE_LAYERS, "depth": 6}},
)
TINY["evaluator_small"] = TINY["evaluator_stage1"]
BASES = {
    "vision_evaluator_fine": "vision_evaluator",
    "vision_evaluator_small": "vision_evaluator",
    "evaluator_small": "evaluator_stage1",
}
"""What stands before a config that says only what differs."""

EVALUATORS = (
    "vision_evaluator",
    "vision_evaluator_fine",
    "evaluator_stage1",
    "evaluator_stage2",
    "vision_evaluator_small",
    "evaluator_small",
)


def tiny(name: str, steps: int, **overrides: Any) -> dict[str, Any]:
    """What makes a stage tiny, for that many steps, as a config to stand after its own."""
    config: dict[str, Any] = {
        "trainer": {"max_steps": steps, "val_check_interval": steps, "log_every_n_steps": 1},
        "checkpoints": {"every_n_train_steps": 1, "save_top_k": -1},
        "model": {},
        "data": {"scenes": 2, "workers": 0, "val_batches": 1},
    }
    for key, value in (TINY[name][1] | overrides).items():
        section, field = key.split(".")
        config[section][field] = value
    return config


def train(name: str, steps: int, *arguments: str, subcommand: str = "fit", **overrides: Any) -> None:
    """Run a stage in the current folder, as its command line does."""
    file = Path(f"{name}.yaml")
    file.write_text(yaml.safe_dump(_plain(tiny(name, steps, **overrides))))
    configs = [*(CONFIGS / f"{one}.yaml" for one in (BASES.get(name), name) if one), file]
    options = [word for config in configs for word in ("--config", str(config))]
    with mock.patch.object(sys, "argv", ["training", subcommand, *options, *arguments]):
        TINY[name][0]()


def train_everything(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Do everything of `make train-mini` in its order, two steps a stage; where in a folder it lies."""
    tokenizer.save_pretrained(folder / "runs/mini/tokenizer")
    with chdir(folder):
        for name in ("segmenter", "vision_generator", "generator"):
            train(name, 2)
        ship(Path("runs/mini"), Path("runs/mini/shipped"))
        scoring_data(**SCORING)
        for name in EVALUATORS:
            train(name, 2)
        ship(Path("runs/mini"), Path("runs/mini/shipped"))
    return folder / "runs/mini"


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(item) for item in node] if isinstance(node, list | tuple) else node
