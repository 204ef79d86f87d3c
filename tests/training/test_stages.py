"""Every stage starts from its config, writes what the library loads, and resumes as if nothing had happened."""

import csv
import json
import os
import shutil
from contextlib import chdir
from inspect import signature
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close

from rea2seg.devices import ON_CPU
from rea2seg.errors import ConfigError
from rea2seg.evaluators.internvl import InternVL
from rea2seg.evaluators.prompts import SHORT, EvaluatorTemplate
from rea2seg.evaluators.weights import load_internvl
from rea2seg.generator.lisa import Lisa
from rea2seg.pipeline import Rea2Seg
from rea2seg.segmenters.sam import Sam
from rea2seg.structures import Query
from tests.training.conftest import CONVERSATION
from tests.training.stages import BASES, CONFIGS, TINY, train
from training.evaluator import EvaluatorStage
from training.generator import GeneratorStage
from training.guidance import GuidedLayers
from training.resuming import LastCheckpoint
from training.segmenter import SegmenterStage
from training.ship import main as ship_command
from training.ship import ship
from training.stage import Stage, run
from training.vision import LabelledScenes, VisionStage

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
REPORTED = {
    "segmenter": ["iou/refined"],
    "vision_generator": ["accuracy/kind"],
    "vision_evaluator": ["cover"],
    "vision_evaluator_fine": ["match"],
    "generator": ["accuracy/attention"],
    "evaluator_stage1": ["accuracy/digits"],
    "evaluator_stage2": ["words"],
    "vision_evaluator_small": ["cover"],
    "evaluator_small": ["accuracy/digits"],
}
"""A part of each stage's losses that its validation tells."""


def test_every_stage_writes_what_the_library_loads(work):
    sam = Sam(work / "segmenter/weights", work / "generator/weights/mask_decoder.safetensors")
    lisa = Lisa(
        work / "generator/weights", CONVERSATION, layers=(3, 4), answer="[SEG]", geometry="pad", placement=ON_CPU
    )
    adapter = work / "evaluator_stage2/weights"
    InternVL(work / "evaluator_stage1/weights", adapter, image_side=64, mask_side=32)
    InternVL(work / "evaluator_small/weights", image_side=64, mask_side=32)
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    assert lisa.ground([Query(image, "it")])[0].token.shape == (1, 1, 32)
    assert sam.encode([image])[0].features.shape == (32, 8, 8)


def test_the_whole_of_mini_runs_on_what_was_shipped(work):
    pipeline = Rea2Seg.from_config("mini", work / "shipped", device="cpu")
    image = next((work / "scoring/images").iterdir())
    ranking = pipeline(image, "the red ball")
    assert len(ranking) >= 3
    assert all(score.iou is not None for score in ranking.scores)


def changed(one, other):
    """The tensors of two safetensors files that differ."""
    before, after = load_file(one), load_file(other)
    assert before.keys() == after.keys()
    return {name for name in before if not before[name].equal(after[name])}


def test_the_generator_trains_its_language_model_and_its_decoder_alone(work):
    touched = changed(*(work / f"{name}/weights/model.safetensors" for name in ("vision_generator", "generator")))
    assert any("language_model.model.layers" in name for name in touched)
    assert not [name for name in touched if "vision_tower" in name or "multi_modal_projector" in name]
    assert changed(*(work / f"{name}/weights/connector.safetensors" for name in ("vision_generator", "generator")))
    decoder = load_file(work / "generator/weights/mask_decoder.safetensors")
    stock = load_file(work / "segmenter/weights/model.safetensors")
    assert any(not value.equal(stock[f"mask_decoder.{name}"]) for name, value in decoder.items())


def test_the_evaluator_trains_its_language_model_alone(work):
    names = ("vision_evaluator_fine", "evaluator_stage1")
    touched = changed(*(work / f"{name}/weights/model.safetensors" for name in names))
    assert any("language_model.model.layers" in name for name in touched)
    assert not [name for name in touched if "vision_tower" in name or "multi_modal_projector" in name]


def test_stage_2_is_an_adapter_of_the_language_layers(work):
    adapter = load_file(work / "evaluator_stage2/weights/adapter_model.safetensors")
    config = json.loads((work / "evaluator_stage2/weights/adapter_config.json").read_text())
    assert config["r"] == 2
    assert all(".language_model.layers." in name for name in adapter)
    assert len(adapter) == 9 * 7 * 2  # Nine layers of seven projections, two matrices each.
    assert any(value.any() for name, value in adapter.items() if "lora_B" in name)
    plain, _ = load_internvl(work / "evaluator_stage1/weights")
    merged, _ = load_internvl(work / "evaluator_stage1/weights", work / "evaluator_stage2/weights")
    moved = {name for name, value in plain.state_dict().items() if not value.equal(merged.state_dict()[name])}
    assert len(moved) == 9 * 7


@pytest.mark.parametrize("name", ["vision_evaluator", "generator", "evaluator_stage1", "evaluator_stage2"])
def test_a_run_killed_after_two_steps_ends_where_an_uninterrupted_one_does(
    work, tokenizer, tmp_path, monkeypatch, name
):
    logged, log = set(), Stage.log_dict
    monkeypatch.setattr(
        Stage, "log_dict", lambda stage, parts, **more: logged.update(parts.values()) or log(stage, parts, **more)
    )
    tokenizer.save_pretrained(tmp_path / "runs/mini/tokenizer")
    earlier_ones = {
        "segmenter",
        "vision_generator",
        "generator",
        "vision_evaluator_fine",
        "evaluator_stage1",
        "scoring",
    }
    for earlier in earlier_ones - {name}:
        os.symlink(work / earlier, tmp_path / "runs/mini" / earlier)
    checkpoints = tmp_path / f"runs/mini/{name}/checkpoints"
    options = {"data.seed": 1, "trainer.precision": "bf16-mixed", "trainer.val_check_interval": 2}
    exported = []
    with chdir(tmp_path):
        for arguments in ([], ["--ckpt_path", str(checkpoints / "epoch=0-step=2.ckpt")]):
            train(name, 4, *arguments, **options)
            exported.append(load_file(next(Path(f"runs/mini/{name}/weights").glob("*model.safetensors"))))
    assert not [*checkpoints.glob("last-*")]
    whole, resumed = exported
    assert_close(resumed, whole, atol=0, rtol=0)
    logs = [tmp_path / f"runs/mini/{name}/log/version_{run}/metrics.csv" for run in (0, 1)]
    rows = [[*csv.DictReader(log.read_text().splitlines())] for log in logs]
    assert [min(int(row["step"]) for row in run) for run in rows] == [0, 2]
    assert [[int(row["step"]) for row in run if not row["train/rate"]] for run in rows] == [[1, 3], [3]]
    assert {value.dtype for value in logged if isinstance(value, torch.Tensor)} == {torch.float32}


def test_what_ships_is_half_as_large_and_otherwise_the_same(work):
    for name in ("segmenter", "generator", "evaluator_stage1", "evaluator_small"):
        shipped = load_file(work / "shipped" / name.removesuffix("_stage1") / "model.safetensors")
        trained = load_file(work / name / "weights/model.safetensors")
        assert shipped.keys() == trained.keys()
        assert {value.dtype for value in shipped.values()} == {torch.float16}
        assert_close(shipped, {key: value.half() for key, value in trained.items()})
    files = {str(file.relative_to(work / "shipped")) for file in (work / "shipped").rglob("*") if file.is_file()}
    assert {"generator/tokenizer.json", "evaluator/tokenizer.json", "evaluator/adapter/adapter_config.json"} <= files
    assert not [file for file in files if file.endswith(("README.md", ".gitattributes"))]


def test_an_adapter_of_an_earlier_evaluator_does_not_ship(work, tmp_path, capsys):
    for name in ("evaluator_stage1", "evaluator_stage2"):
        shutil.copytree(work / name / "weights", tmp_path / "runs" / name / "weights")
    ship(tmp_path / "runs", tmp_path / "shipped")
    assert (tmp_path / "shipped/evaluator/adapter/adapter_model.safetensors").exists()
    base = tmp_path / "runs/evaluator_stage1/weights/model.safetensors"
    os.utime(base, (base.stat().st_atime, base.stat().st_mtime + 3600))
    ship(tmp_path / "runs", tmp_path / "shipped")
    assert "left out" in capsys.readouterr().out
    assert not (tmp_path / "shipped/evaluator/adapter").exists()
    assert (tmp_path / "shipped/evaluator/model.safetensors").exists()


def test_an_evaluator_without_an_adapter_does_not_ship_with_the_one_before(work, tmp_path):
    shutil.copytree(work / "evaluator_stage1/weights", tmp_path / "runs/evaluator_stage1/weights")
    shutil.copytree(work / "shipped/evaluator", tmp_path / "shipped/evaluator")
    assert (tmp_path / "shipped/evaluator/adapter").exists()
    ship(tmp_path / "runs", tmp_path / "shipped")
    assert not (tmp_path / "shipped/evaluator/adapter").exists()


def test_a_folder_without_stages_ships_nothing_and_says_so(tmp_path, capsys):
    assert ship_command(["--runs", str(tmp_path / "nowhere"), "--out", str(tmp_path / "shipped")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "shipped").exists()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of the copied folder
def test_a_stage_that_is_only_validated_exports_nothing(work, tmp_path, monkeypatch):
    shutil.copytree(work.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    weights = Path("runs/mini/segmenter/weights/model.safetensors")
    before = weights.read_bytes()
    train("segmenter", 2, subcommand="validate")
    train("segmenter", 2, "--ckpt_path", "runs/mini/segmenter/checkpoints/last.ckpt", subcommand="validate")
    assert weights.read_bytes() == before


def test_a_checkpoint_that_began_with_other_weights_is_not_gone_on_with(work, tmp_path, monkeypatch):
    shutil.copytree(work.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    shutil.copy("runs/mini/shipped/segmenter/model.safetensors", "runs/mini/segmenter/weights/model.safetensors")
    with pytest.raises(ConfigError, match=r"began with other weights than now lie in .*segmenter/weights: leave out"):
        train("generator", 3, "--ckpt_path", "last")


def test_what_a_stage_refuses_is_said_in_one_line(monkeypatch, capsys):
    def refuse(*_):
        raise ConfigError("an adapter\ngoes on from `weights`")

    monkeypatch.setattr("training.stage.fit", refuse)
    with pytest.raises(SystemExit) as told:
        run(VisionStage, LabelledScenes)
    assert told.value.code == 2
    assert capsys.readouterr().err == "error: an adapter goes on from `weights`\n"


@pytest.mark.parametrize("name", list(TINY))
def test_tensorboard_has_the_curves_and_the_examples_of_every_stage(work, name):
    events = EventAccumulator(str(work / name / "tensorboard"))
    events.Reload()
    assert "examples/0" in events.Tags()["images"]
    curves = {"train/gradient", "train/rate", "train/steps_per_second", *(f"val/{part}" for part in REPORTED[name])}
    assert curves <= {*events.Tags()["scalars"]}
    rate = read(f"{BASES.get(name, name)}.yaml")["model"]["schedule"]
    assert events.Scalars("train/rate")[0].value == pytest.approx(rate["lr"] / rate["warmup"])


def test_a_generator_goes_on_with_the_decoder_that_it_had(work):
    again = GeneratorStage(str(work / "generator/weights"), str(work / "segmenter/weights"), "nowhere")
    assert_close(dict(again.decoder.state_dict()), load_file(work / "generator/weights/mask_decoder.safetensors"))


@pytest.mark.parametrize(
    ("stage", "runs"),
    [
        (SegmenterStage, ["segmenter"]),
        (VisionStage, ["vision_generator", "vision_evaluator"]),
        (GeneratorStage, ["generator"]),
        (EvaluatorStage, ["evaluator_stage1"]),
    ],
)
def test_every_weight_of_a_loss_belongs_to_a_part_of_it(work, stage, runs):
    logged = set()
    for name in runs:
        logged |= set((work / name / "log/version_0/metrics.csv").read_text().splitlines()[0].split(","))
    assert {f"train/{name}" for name in stage.LOSS} <= logged


@pytest.mark.parametrize("name", list(TINY))
def test_the_last_step_of_a_run_is_validated_and_kept(name):
    trainer = read(f"{name}.yaml")["trainer"]
    every = signature(LastCheckpoint).parameters["every_n_train_steps"].default
    assert trainer["max_steps"] % every == trainer["max_steps"] % trainer["val_check_interval"] == 0


def read(*path):
    return yaml.safe_load(CONFIGS.joinpath(*path).read_text())


def test_the_stages_are_trained_as_mini_runs():
    """What training and inference must share is written in several files."""
    mini, stage = read("..", "mini.yaml"), read("generator.yaml")
    lisa = mini["generator"]["init_args"]
    assert lisa["conversation"] == stage["data"]["conversation"]
    assert lisa["answer"] == stage["data"]["answer"]
    assert lisa["layers"] == stage["model"]["layers"]
    assert lisa["row"] == "predictor"
    # The evaluator's language model comes from the generator's: questions are answered in the same layers.
    assert [*GuidedLayers().point_layers] == stage["model"]["layers"]
    assert GuidedLayers().mention_layers == signature(GeneratorStage).parameters["mention_layers"].default
    assert lisa["geometry"] == "pad"
    tower, canvas = read("vision_generator.yaml"), read("segmenter.yaml")
    assert tower["data"]["padded"]
    assert tower["model"]["tower"] == tower["data"]["tower"]
    assert tower["model"]["prompt_width"] == canvas["model"]["config"]["channels"]
    assert stage["data"]["side"] == tower["data"]["tower"]["side"]
    assert stage["data"]["grid"] == tower["data"]["grid"] == stage["data"]["side"] // tower["data"]["tower"]["patch"]
    assert stage["data"]["canvas"] == canvas["data"]["side"] == canvas["model"]["config"]["image_size"]
    judge, seen = mini["selector"]["init_args"]["evaluator"]["init_args"], read("vision_evaluator.yaml")
    fine = read("vision_evaluator_fine.yaml")
    for stage_of_tower in (seen, fine, read("vision_evaluator_small.yaml")):
        towers = stage_of_tower["model"]["tower"], stage_of_tower["data"]["tower"]
        assert towers[0] == towers[1]
        assert stage_of_tower["data"]["grid"] == towers[0]["side"] // towers[0]["patch"]
    assert fine["model"]["weights"] == fine["model"]["teacher"] == seen["model"]["export"]
    assert not seen["data"]["padded"]
    assert seen["data"]["mask_side"] == judge["mask_side"]
    assert EvaluatorTemplate(**judge["template"]) == SHORT
    for number in (1, 2):
        data = read(f"evaluator_stage{number}.yaml")["data"]
        assert "template" not in data  # Its default is SHORT.
        assert (data["image_side"], data["mask_side"]) == (judge["image_side"], judge["mask_side"])
        assert data["image_side"] == fine["data"]["tower"]["side"]
    assert stage["model"]["segmenter"] == canvas["model"]["export"]
    first = read("evaluator_stage1.yaml")["model"]
    assert (first["weights"], first["language"]) == (fine["model"]["export"], stage["model"]["export"])
    assert seen["model"]["teacher"] == stage["model"]["weights"] == tower["model"]["export"]
