"""The native dataset form: a folder with `images/` and `samples.jsonl`, one question a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, get_args
from urllib.parse import quote

from jaxtyping import Bool
from torch import Tensor

from rea2seg.errors import InputError, reason
from rea2seg.images import load_image, to_picture
from rea2seg.masks import Rle, decode_rle, encode_rle
from rea2seg.output import replacing, writable_folder, write_picture
from rea2seg.structures import Granularity, Region, Sample
from rea2seg.text import clean_question

FILE = "samples.jsonl"
_TEXTS = ("category", "component", "granularity", "reasoning", "split")


class NativeDataset:
    """Reads the native form: every line is checked at once, and that its image exists. Images and masks are read when
    they are asked for. Raises `InputError` with the line."""

    def __init__(self, root: str | Path, split: str | None = None) -> None:
        self.root = Path(root)
        records = _read_lines(self.root / FILE)
        seen: set[str] = set()
        for where, record in records:
            _check(record, where)
            _check_image(self.root / record["image"], where)
            if record["id"] in seen:
                raise InputError(f"{where}: the id {record['id']!r} is used twice")
            seen.add(record["id"])
        self.records = [
            (where, record) for where, record in records if split is None or record.get("split", split) == split
        ]
        if not self.records:
            raise InputError(f"{self.root / FILE} has no samples" + (f" of the split {split!r}" if split else ""))

    def __len__(self) -> int:
        return len(self.records)

    def pictures(self) -> tuple[str, ...]:
        """The files of the images, each once."""
        return tuple(dict.fromkeys(str(self.root / record["image"]) for _, record in self.records))

    def question(self, index: int) -> str:
        """The query of a sample, without reading its image and masks."""
        query: str = self.records[index][1]["query"]
        return query

    def __getitem__(self, index: int) -> Sample:
        where, record = self.records[index]
        try:
            return _sample(record, self.root)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def _read_lines(file: Path) -> list[tuple[str, Any]]:
    """Every line that is not blank, with the words to find it again."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist; a dataset is a folder with images/ and {FILE}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {reason(error)}") from error
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append((f"{file}, line {number}", json.loads(line)))
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{file}, line {number}: not JSON ({error})") from error
    return records


def _check(record: Any, where: str) -> None:
    """Everything about a record that can be told without its image."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: a sample is a JSON object, not {type(record).__name__}")
    for key in ("id", "image", "query"):
        if not isinstance(record.get(key), str) or not record[key]:
            raise InputError(f"{where}: {key!r} must be a text that is not empty")
    try:
        clean_question(record["query"])
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if "segmentation" not in record:
        raise InputError(f"{where}: 'segmentation' is missing; null says that nothing answers the question")
    for key in _TEXTS:
        if not isinstance(record.get(key, ""), str):
            raise InputError(f"{where}: {key!r} must be a text")
    if record.get("granularity", "object") not in get_args(Granularity):
        raise InputError(f"{where}: 'granularity' must be one of {', '.join(get_args(Granularity))}")
    path = PurePosixPath(record["image"])
    if path.is_absolute() or ".." in path.parts or "\0" in record["image"]:
        raise InputError(f"{where}: 'image' must be a path inside the dataset's folder")
    if not isinstance(record.get("graph"), dict | None):
        raise InputError(f"{where}: 'graph' must be an object")
    for key in ("instances", "parts"):
        _check_regions(record.get(key, []), key, where)


def _check_image(file: Path, where: str) -> None:
    if not os.path.isfile(file):  # unlike the method of Path, False for a name that is too long
        raise InputError(f"{where}: the image {str(file)!r} does not exist, or is not a file")


def _check_regions(regions: Any, key: str, where: str) -> None:
    if not isinstance(regions, list):
        raise InputError(f"{where}: {key!r} must be a list")
    for region in regions:
        if not isinstance(region, dict) or not isinstance(region.get("label"), str) or "segmentation" not in region:
            raise InputError(f"{where}: each of {key!r} must have a 'label' and a 'segmentation'")


def _sample(record: dict[str, Any], root: Path) -> Sample:
    image = load_image(root / record["image"])
    size = (image.shape[1], image.shape[2])
    ignore = record.get("ignore")
    return Sample(
        id=record["id"],
        image=image,
        query=record["query"],
        truth=None if record["segmentation"] is None else _mask(record["segmentation"], size),
        ignore=None if ignore is None else _mask(ignore, size),
        category=record.get("category", "all"),
        component=record.get("component", ""),
        granularity=record.get("granularity", "object"),
        split=record.get("split", ""),
        instances=_regions(record.get("instances", []), size),
        parts=_regions(record.get("parts", []), size),
        graph=record.get("graph"),
        reasoning=record.get("reasoning", ""),
    )


def _mask(segmentation: Any, size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    # The size comes first: a false one could ask for any amount of memory.
    given = segmentation.get("size") if isinstance(segmentation, dict) else None
    if given != list(size):
        raise InputError(
            f"a mask of size {given} does not fit the image of {size[0]} x {size[1]} (height x width) pixels"
        )
    return decode_rle(segmentation)


def _regions(regions: Sequence[dict[str, Any]], size: tuple[int, int]) -> tuple[Region, ...]:
    return tuple(Region(region["label"], _mask(region["segmentation"], size)) for region in regions)


def to_record(sample: Sample, image: str) -> dict[str, Any]:
    """A sample as one line of the native form. `image` is the path of its picture inside the dataset's folder."""
    record: dict[str, Any] = {
        "id": sample.id,
        "image": image,
        "query": sample.query,
        "segmentation": None if sample.truth is None else encode_rle(sample.truth),
        "category": sample.category,
        "component": sample.component,
        "granularity": sample.granularity,
        "instances": _region_records(sample.instances),
        "parts": _region_records(sample.parts),
        "reasoning": sample.reasoning,
    }
    if sample.split:
        record["split"] = sample.split
    if sample.ignore is not None:
        record["ignore"] = encode_rle(sample.ignore)
    if sample.graph is not None:
        record["graph"] = sample.graph
    return record


def _region_records(regions: Sequence[Region]) -> list[dict[str, str | Rle]]:
    return [{"label": region.label, "segmentation": encode_rle(region.mask)} for region in regions]


def write_native(samples: Iterable[Sample], folder: str | Path) -> int:
    """Write samples in the native form, images as PNG; returns how many. The list appears when all are there."""
    root, count = Path(folder), 0
    writable_folder(root / "images")
    with (
        replacing(root / FILE) as place,
        place.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as lines,
    ):
        for sample in samples:
            image = f"images/{quote(sample.id, '', errors='surrogatepass')}.png"
            write_picture(root / image, to_picture(sample.image))
            lines.write(json.dumps(to_record(sample, image), ensure_ascii=False) + "\n")
            count += 1
    return count
