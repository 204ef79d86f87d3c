import pytest

from rea2seg.evaluate.benchmarks import ENDLESS, Benchmark, open_benchmark
from rea2seg.synth.vocabulary import SIZES_OF_SPLITS
from tests.evaluate.paint import sample


def test_the_other_question_is_the_next_one_that_differs():
    texts = ["a", "a", "b", "a"]
    dataset = Benchmark(4, sample, texts.__getitem__, 4)
    assert [dataset.other_question(i) for i in range(4)] == ["b", "b", "a", "b"]
    endless = Benchmark(2, sample, lambda i: str(i // 2))
    assert endless.other_question(1) == "1"  # beyond the limit
    assert Benchmark(2, sample, lambda _: "a", 2).other_question(0) is None


def test_to_find_another_question_no_picture_is_read(shop, monkeypatch):
    benchmark = open_benchmark("jsonl", shop / "data", "test", 0, None)
    monkeypatch.setattr("rea2seg.data.native.load_image", lambda _: pytest.fail("a picture was read"))
    assert benchmark.other_question(0) != benchmark.question(0)


def test_a_limit_takes_the_first_samples(shop):
    assert open_benchmark("jsonl", shop / "data", "test", 0, None).count == 9
    assert open_benchmark("jsonl", shop / "data", "test", 0, 4).count == 4
    assert open_benchmark("jsonl", shop / "data", "test", 0, 40).count == 9
    assert open_benchmark("sgdr-synth", None, "test", 0, 3).sample(0).id.startswith("test-")


def test_splits_of_the_drawn_benchmark_end_but_for_training():
    for split, size in SIZES_OF_SPLITS.items():
        whole = open_benchmark("sgdr-synth", None, split, 0, None)
        assert (whole.count, whole.size) == (size or ENDLESS, size)
        assert open_benchmark("sgdr-synth", None, split, 0, 100_000).count == (size or 100_000)
