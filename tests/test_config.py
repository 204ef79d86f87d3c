import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rea2seg.checkpoints.hub import Repository
from rea2seg.config import config_names, load_config, package_path
from rea2seg.errors import ConfigError
from rea2seg.rivals import quality
from tests.fakes import PaintEvaluator, PaintSegmenter, find_nothing

PAINT: dict[str, Any] = {
    "generator": {"class_path": "tests.fakes.PaintGenerator", "init_args": {"grid": 4}},
    "segmenter": {"class_path": "tests.fakes.PaintSegmenter"},
    "searches": [
        {"class_path": "rea2seg.generator.candidates.PromptSearch"},
        {
            "class_path": "rea2seg.generator.candidates.AttentionSearch",
            "init_args": {"keep": 4, "seeds": {"kept": 5}},
        },
    ],
    "selector": {
        "class_path": "rea2seg.ranking.ByEvaluator",
        "init_args": {"group": 4, "evaluator": {"class_path": "tests.fakes.PaintEvaluator"}},
    },
}


@pytest.fixture
def paint() -> dict[str, Any]:
    return deepcopy(PAINT)


@pytest.fixture
def written(tmp_path: Path):
    def write(config: dict[str, Any], name: str = "paint.yaml") -> Path:
        (tmp_path / name).write_text(yaml.safe_dump(config))
        return tmp_path / name

    return write


def refusal(*args: Any, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*args, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def evaluator_of(config: dict[str, Any]) -> dict[str, Any]:
    return config["selector"]["init_args"]["evaluator"]


def test_a_function_can_take_a_seat_and_a_config_with_one_is_the_same_every_time(paint, written):
    paint["selector"], paint["searches"] = "rea2seg.rivals.quality", ["tests.fakes.find_nothing"]
    config = load_config(written(paint))
    assert (config.seats["selector"], config.seats["searches"]) == (paint["selector"], paint["searches"])
    seats = config.build()
    assert (seats["selector"], seats["searches"]) == (quality, [find_nothing])


def test_a_config_builds_its_seats_with_their_arguments(paint, written):
    seats = load_config(written(paint)).build()
    assert isinstance(seats["segmenter"], PaintSegmenter)
    assert isinstance(seats["selector"].evaluator, PaintEvaluator)
    assert (seats["generator"].grid, seats["selector"].group) == (4, 4)
    assert (seats["searches"][1].keep, seats["searches"][1].seeds.kept) == (4, 5)


def test_a_pipeline_needs_no_generator(paint, written):
    del paint["generator"]
    assert load_config(written(paint)).build()["generator"] is None


def test_the_name_of_a_path_is_its_stem_and_the_note_comes_along(paint, written):
    config = load_config(str(written(paint | {"note": "only paint"}, "my_paint.yml")))
    assert (config.name, config.note) == ("my_paint", "only paint")


def test_checking_a_config_loads_nothing(paint, written, monkeypatch):
    loaded = []
    monkeypatch.setattr(PaintSegmenter, "__init__", lambda *_, **__: loaded.append("weights"))
    config = load_config(written(paint))
    assert loaded == []
    config.build()
    assert loaded == ["weights"]


# What is wrong is said in one line, by name


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda c: c.update(segmentor=1), ["segmentor"]),
        (lambda c: c.pop("selector"), ["required", "selector"]),
        (lambda c: c["generator"]["init_args"].update(gird=3), ["generator", "PaintGenerator", "gird"]),
        (lambda c: c["generator"]["init_args"].update(grid="x"), ["grid", "x"]),
        (lambda c: c["searches"][1]["init_args"].update(keeps=3), ["AttentionSearch", "keeps"]),
        (lambda c: c["searches"][1]["init_args"]["seeds"].update(kpt=3), ["seeds", "kpt"]),
        (lambda c: evaluator_of(c).update(init_args={"reasonin": True}), ["PaintEvaluator", "reasonin"]),
        (lambda c: evaluator_of(c).update(class_path="tests.fakes.Nobody"), ["tests.fakes", "Nobody"]),
        (lambda c: evaluator_of(c).update(class_path="no.such.module.Judge"), ["no.such.module.Judge"]),
        (lambda c: c["segmenter"].update(class_path="tests.fakes.PaintEvaluator"), ["PaintEvaluator", "Segmenter"]),
        (lambda c: c["searches"].append({"class_path": "tests.fakes.PaintGenerator"}), ["PaintGenerator", "Search"]),
    ],
)
def test_mistakes_are_named(paint, written, edit, names):
    edit(paint)
    message = refusal(written(paint))
    assert message.startswith("config paint: ")
    assert all(name in message for name in names)


def test_a_config_that_is_not_there_is_named_with_those_that_are():
    assert "mini" in config_names()
    assert refusal("mimi").startswith("no config is called 'mimi'")
    assert "mini" in refusal("mimi").split("one of")[1]
    told = (
        "config 'folder/none.yaml' cannot be read (No such file or directory): give the path of a YAML file, or one of "
    )
    assert refusal("folder/none.yaml") == told + ", ".join(config_names())


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: [1", "is not YAML"), (b"\xff\xfe\x00", "is not YAML"), (b"", "holds no keys"), (b"- 1", "holds no keys")],
)
def test_what_is_not_a_config_is_refused(tmp_path, content, words):
    (tmp_path / "bad.yaml").write_bytes(content)
    assert words in refusal(tmp_path / "bad.yaml")


# Weights


def test_the_root_of_the_weights_can_be_replaced(paint, written, tmp_path):
    for root in ("own", "given"):
        (tmp_path / root / "judge").mkdir(parents=True)
    evaluator_of(paint)["init_args"] = {"weights": "weights://judge"}
    path = written(paint | {"weights": str(tmp_path / "own")})
    for root, config in [("own", load_config(path)), ("given", load_config(path, tmp_path / "given"))]:
        assert config.build()["selector"].evaluator.weights == str(tmp_path / root / "judge")


def test_weights_inside_the_package_are_found_from_any_folder(paint, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluator_of(paint)["init_args"] = {"weights": "weights://configs.py"}
    paint["segmenter"]["init_args"] = {"weights": "rea2seg://config.py"}
    assert refusal(written(paint | {"weights": "rea2seg://"})).endswith("--weights DIR names another folder")
    evaluator_of(paint)["init_args"] = {"weights": "weights://config.py"}
    seats = load_config(written(paint | {"weights": "rea2seg://"})).build()
    assert seats["segmenter"].weights == seats["selector"].evaluator.weights == str(package_path("rea2seg://config.py"))
    assert Path(seats["segmenter"].weights).is_file()


def test_missing_weights_are_named_before_anything_loads(paint, written, tmp_path):
    evaluator_of(paint)["init_args"] = {"weights": "weights://judge"}
    assert refusal(written(paint)) == "config paint comes without weights: give their folder with --weights DIR"
    missing = str(tmp_path / "nowhere" / "judge")
    assert f"the weights {missing!r} do not exist" in refusal(written(paint), tmp_path / "nowhere")
    assert "do not exist" in refusal(written(paint), "a" * 5000)


# Arguments given beside the config


def test_a_seed_reaches_everything_that_draws(paint, written):
    seats = load_config(written(paint), seed=7).build()
    assert (seats["selector"].seed, seats["searches"][1].seeds.seed) == (7, 7)
    paint["searches"].pop()
    paint["selector"] = {"class_path": "rea2seg.rivals.Random"}
    assert load_config(written(paint), seed=7).build()["selector"].seed == 7


def test_reasoning_reaches_the_evaluator_and_an_argument_that_nobody_takes_is_an_error(paint, written):
    assert load_config(written(paint), reasoning=True).build()["selector"].evaluator.reasoning is True
    assert refusal(written(paint), resoning=True) == "config paint: nothing in it takes 'resoning'"
    assert "reasoning" in refusal(written(paint), reasoning="perhaps")


def test_a_whole_seat_can_be_replaced(paint, written):
    short = load_config(written(paint), searches=paint["searches"][:1], generator=None).build()
    assert [type(search).__name__ for search in short["searches"]] == ["PromptSearch"]
    assert short["generator"] is None


def pretend(monkeypatch, gpus):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    own = torch.device("cuda") if gpus else None
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: own)  # noqa: ARG005
    monkeypatch.setattr("torch.accelerator.device_count", lambda: gpus)


def test_auto_leaves_a_device_alone_that_the_config_names(paint, written, monkeypatch):
    pretend(monkeypatch, gpus=2)
    paint["generator"]["init_args"]["device"] = "cuda:1"
    seats = load_config(written(paint)).build()
    assert (seats["generator"].device, seats["segmenter"].device) == ("cuda:1", "cuda")
    assert load_config(written(paint), device="cpu").build()["generator"].device == "cpu"


def test_a_device_that_the_machine_lacks_is_refused(paint, written, monkeypatch):
    pretend(monkeypatch, gpus=0)
    assert load_config(written(paint)).build()["segmenter"].device == "cpu"
    assert "no CUDA device" in refusal(written(paint), device="cuda:0")
    assert "'gpu' is not a device" in refusal(written(paint), device="gpu")
    pretend(monkeypatch, gpus=1)
    assert load_config(written(paint), device="cuda:0").build()["segmenter"].device == "cuda:0"
    assert "no device 'cuda:7': the last one is cuda:0" in refusal(written(paint), device="cuda:7")
    for device in ("mps", "meta"):
        assert f"no {device.upper()} device" in refusal(written(paint), device=device)


# The packaged ones


@pytest.mark.parametrize("name", config_names())
def test_every_packaged_config_is_right_and_says_how_to_run_it(name, tmp_path):
    text = (Path(__file__).parents[1] / "configs" / f"{name}.yaml").read_text()
    assert text.startswith("# python -m rea2seg.")
    assert f"--config {name} " in text.splitlines()[0]
    for address in re.findall(r"weights://([\w./-]+)", text):
        (tmp_path / address).mkdir(parents=True, exist_ok=True)
    config = load_config(name, tmp_path, seed=1, reasoning=True)
    assert json.loads(config.text()) == json.loads(load_config(name, tmp_path, seed=1, reasoning=True).text())


# Weights from a table


@pytest.fixture
def table(paint, written):
    """A config whose generator takes its grid of paint from a table of weights."""

    def write(weights: Any) -> Path:
        paint["generator"] = {
            "class_path": "rea2seg.generator.lisa.Lisa",
            "init_args": {"weights": "weights://generator", "vision_tower": "weights://tower"},
        }
        return written(paint | {"weights": weights})

    return write


HUB = {"repo": "xinlai/LISA-7B-v1", "revision": "43c754e", "files": ["*.json"]}


def test_a_table_names_a_path_or_a_repository_for_each_part(table, tmp_path, monkeypatch):
    config = load_config(table({"generator": HUB, "tower": str(tmp_path)}))
    lisa = config.seats["generator"]["init_args"]
    assert (lisa["weights"], lisa["vision_tower"]) == ("weights://generator", str(tmp_path))
    assert config.repositories == {"generator": Repository("xinlai/LISA-7B-v1", "43c754e", ("*.json",))}
    assert '"revision": "43c754e"' in config.text()
    asked = []
    monkeypatch.setattr("rea2seg.config.fetched", lambda source, download: asked.append((source, download)) or tmp_path)
    local = config.local(download=False)
    assert asked == [(config.repositories["generator"], False)]
    assert local.seats["generator"]["init_args"]["weights"] == str(tmp_path)
    assert local.repositories == {}


def test_repositories_can_be_placed_one_by_one(table, tmp_path):
    config = load_config(table({"generator": HUB, "tower": HUB | {"revision": "v2"}}))
    half = config.placed({"tower": tmp_path / "tower", "nobody": tmp_path})
    lisa = half.seats["generator"]["init_args"]
    assert (lisa["weights"], lisa["vision_tower"]) == ("weights://generator", str(tmp_path / "tower"))
    assert half.repositories == {"generator": config.repositories["generator"]}
    whole = half.placed({"generator": tmp_path})
    assert whole.seats["generator"]["init_args"]["weights"] == str(tmp_path)
    assert whole.repositories == {}
    assert config.seats["generator"]["init_args"]["vision_tower"] == "weights://tower"


def test_a_folder_of_weights_replaces_the_whole_table(table, tmp_path):
    place = table({"generator": HUB, "tower": HUB})
    told = f"config paint: the weights {str(tmp_path / 'tower')!r} do not exist: put them there, `hf download "
    command = f"xinlai/LISA-7B-v1 --include '*.json' --revision 43c754e --local-dir {tmp_path / 'tower'}`"
    assert refusal(place, tmp_path) == told + command
    for name in ("generator", "tower"):
        (tmp_path / name).mkdir()
    config = load_config(place, tmp_path)
    assert config.seats["generator"]["init_args"]["weights"] == str(tmp_path / "generator")
    assert config.repositories == {}


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"generator": HUB}, "weights://tower is not in its table of weights: generator"),
        ({"generator": HUB, 7: "/"}, "weights://tower is not in its table of weights: generator, 7"),
        ({"generator": HUB, "tower": "/no/such"}, "the weights '/no/such' do not exist; --weights DIR names another "),
        (
            [1],
            "weights must be a path, or a table of names with a path or with repo, revision and file or files, not [1]",
        ),
        (
            {"tower": 3},
            "weights of 'tower' must be a path, or a table with repo, revision and file or files, not 3",
        ),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_name(table, weights, told):
    assert refusal(table(weights)).startswith(f"config paint: {told}")


FILE = {"repo": "a/b", "revision": "main", "file": "a.pt"}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"repo": "a/b"}, "revision is missing"),
        ({"revision": "main"}, "repo is missing"),
        (HUB | {"branch": "x"}, "'branch' is none of repo, revision, file, files"),
        (HUB | {"revision": 43754}, "revision must be text, not 43754: put it in quotes"),
        (HUB | {"repo": ["a/b"]}, "repo must be text, not ['a/b']: put it in quotes"),
        (FILE | {"file": None}, "file must be text, not None: put it in quotes"),
        (FILE | {"file": ""}, "file must be text, not '': put it in quotes"),
        (FILE | {"files": ["*.json"]}, "file and files exclude each other: keep one"),
        (HUB | {"files": "*.json"}, "files must be a list of patterns, not '*.json': write [\"*.json\"]"),
        (HUB | {"files": ["a", 1]}, "files must be a list of patterns, not ['a', 1]: write [\"*.json\"]"),
        (
            HUB | {"files": ["checkpoints/*.pth"]},
            "files takes names of the top folder, not 'checkpoints/*.pth': name the one file with file",
        ),
    ],
)
def test_a_repository_that_is_wrong_is_refused_by_the_part_it_is_for(table, source, told):
    assert refusal(table({"generator": HUB, "tower": source})) == f"config paint: weights of 'tower': {told}"


def test_a_repository_is_all_of_it_some_files_or_one(table):
    config = load_config(table({"generator": {"repo": "a/b", "revision": "main"}, "tower": FILE}))
    assert config.repositories == {
        "generator": Repository("a/b", "main"),
        "tower": Repository("a/b", "main", file="a.pt"),
    }
    assert [source.patterns() for source in config.repositories.values()] == [None, ["a.pt"]]
