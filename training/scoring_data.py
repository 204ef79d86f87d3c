"""What the evaluator learns from, beside fresh scenes: the generator's candidates, their IoUs, the right reasoning.

    python -m training.scoring_data --config configs/train/scoring_data.yaml

Draws scenes of SGDR-Synth from seeds the generator never saw, asks questions about them, and writes one line a
question to `rows.jsonl`: the keys of the native dataset form, and `candidates`, each with its mask, source, quality,
IoU and what lies under it in words. Scenes that are already there are not done again; those of other weights or
settings are refused.
"""

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from PIL import Image
from tqdm import tqdm

from rea2seg.cli import DONE, run
from rea2seg.config import Config, load_config
from rea2seg.errors import InputError
from rea2seg.masks import encode_rle, iou
from rea2seg.output import write_json, write_picture
from rea2seg.pipeline import Rea2Seg
from rea2seg.structures import Query
from rea2seg.synth.descriptions import describe_mask
from rea2seg.synth.queries import Question, questions
from rea2seg.synth.render import Rendering, look
from rea2seg.synth.vocabulary import VERSION
from rea2seg.synth.worlds import World
from training.batches import stream
from training.resuming import digest
from training.scenes import sample_scene, to_tensor

ROWS, SETTINGS = "rows.jsonl", "settings.json"
MAKERS = ("generator", "segmenter", "searches")
"""The seats of a pipeline that make candidates."""


def ask(
    pipeline: Rea2Seg, world: World, rendering: Rendering, asked: list[Question], name: str, image: str
) -> Iterator[dict[str, Any]]:
    """One row for each question about a scene, whose image is encoded once."""
    pixels, seen = to_tensor(rendering.image), look(world, rendering)
    embedding = None
    for number, question in enumerate(asked):
        query = Query(pixels, question.text, f"{name}-{number}")
        embedding = embedding or pipeline.encode(query)
        found = pipeline.candidates(pipeline.scenes(query, embedding))
        truth = torch.from_numpy(question.truth(rendering))
        yield {
            "id": query.id,
            "image": image,
            "query": question.text,
            "category": question.category,
            "component": question.component,
            "granularity": question.granularity,
            "reasoning": question.reasoning,
            "segmentation": encode_rle(truth),
            "candidates": [
                {
                    "segmentation": encode_rle(candidate.mask),
                    "source": candidate.source,
                    "quality": round(candidate.quality, 4),
                    "iou": round(iou(candidate.mask, truth), 6),
                    "under": describe_mask(candidate.mask.numpy(), rendering, seen),
                }
                for candidate in found
            ],
        }


def settings_of(config: Config, weights: Path, per_scene: int, categories: Sequence[str]) -> dict[str, Any]:
    """What rows depend on, beside their picture: scenes of another version of the benchmark are others too.

    Of the weights their contents count, not where they lie.
    """
    seats = json.dumps({name: config.seats[name] for name in MAKERS}, default=str, ensure_ascii=False)
    asked = {"benchmark": VERSION, "per_scene": per_scene, "categories": [*categories]}
    contents = {part: digest(weights / part) for part in ("segmenter", "generator")}
    return {"weights": contents, **json.loads(seats.replace(f'"{weights}/', '"')), **asked}


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Write what the rows of this folder are made with. Raises InputError if it holds rows that were made otherwise."""
    file = out / SETTINGS
    if (out / ROWS).exists() and (not file.exists() or json.loads(file.read_text()) != settings):
        raise InputError(f"{out} holds rows of other weights or settings: give another folder, or remove it")
    write_json(file, settings)


def done(file: Path, wanted: Collection[str]) -> set[str]:
    """The images that need not be done again; rows of the last one, which a kill may have cut off, are removed.

    They stay if it is not among those that are wanted now, and nobody would do it again.
    """
    begins: dict[str, int] = {}
    with file.open("a+b") as rows:
        rows.seek(0)
        place = 0
        for line in rows:
            if line.endswith(b"\n"):
                begins.setdefault(json.loads(line)["image"], place)
                place += len(line)
        if begins and [*begins][-1] in wanted:
            _, place = begins.popitem()
        rows.truncate(place)
    return set(begins)


def scoring_data(
    out: Path,
    weights: Path,
    pipeline: str = "mini",
    scenes: int = 2000,
    per_scene: int = 4,
    categories: tuple[str, ...] = ("discriminative", "geometric", "spatial", "multi-step"),
    seed: int = 0,
) -> int:
    """Write the rows of `scenes` pictures with `per_scene` questions each. `weights` replaces the pipeline's own."""
    config = load_config(pipeline, weights, selector={"class_path": "rea2seg.rivals.Random"})
    (out / "images").mkdir(parents=True, exist_ok=True)
    claim(out, settings_of(config, weights, per_scene, categories))
    model = Rea2Seg(**config.build())
    wanted = [image_of(seed, index) for index in range(scenes)]
    finished = done(out / ROWS, wanted)
    left = [index for index, image in enumerate(wanted) if image not in finished]
    with (out / ROWS).open("a") as rows:
        for index in tqdm(left, desc="scenes", initial=scenes - len(left), total=scenes):
            image = wanted[index]
            rng = stream(seed, f"scoring_data/{index}")
            world, rendering = sample_scene(rng)
            asked = questions(rng, world, rendering, per_scene, categories)
            write_picture(out / image, Image.fromarray(rendering.image))
            lines = [json.dumps(row) + "\n" for row in ask(model, world, rendering, asked, f"{seed}-{index}", image)]
            rows.write("".join(lines))
            rows.flush()
    return DONE


def image_of(seed: int, index: int) -> str:
    """Where the picture of a scene lies."""
    return f"images/{seed}-{index:06d}.png"


if __name__ == "__main__":
    sys.exit(run(lambda: auto_cli(scoring_data, as_positional=False)))
