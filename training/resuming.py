"""What makes `kill -9` harmless at any moment: no file is ever half written, and no checkpoint is ahead of its logs."""

import filecmp
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written beside their place and moved there when they are whole.

    Lightning's own are moved there from the folder for temporary files, which is copying where that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        # Always the same name: what a killed run left of it is overwritten, not kept.
        unfinished = place.with_name(f".{place.name}.part")
        torch.save(checkpoint, unfinished)
        unfinished.replace(place)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, written every so many steps; where a validation is due, after it and what it exports.

    Lightning never makes up for a validation that a checkpoint came before. 50 steps are a few minutes of any stage.
    `save_top_k` = -1 keeps the checkpoints of all steps beside it.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int = 50, save_top_k: int = 0) -> None:
        super().__init__(
            dirpath,
            save_last=True,
            save_top_k=save_top_k,
            every_n_train_steps=every_n_train_steps,
            # A resumed run goes on with the file of the run before; Lightning would write `last-v1.ckpt` beside it.
            enable_version_counter=False,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not (trainer.enable_validation and (batch_idx + 1) % trainer.val_check_batch == 0):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_batch_end(trainer, pl_module, None, None, 0)


def digest(place: Path) -> str:
    """Of a file, or of all files in a folder: their names and contents, not where they lie."""
    whole = hashlib.sha256()
    for file in [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file()):
        whole.update(file.name.encode())
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()


@contextmanager
def refreshed(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, whose files then replace those of `folder`, one whole file after the other.

    Files that did not change are left as they are, their time too; those that are not written again stay.
    """
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    for file in sorted(path for path in unfinished.rglob("*") if path.is_file()):
        target = folder / file.relative_to(unfinished)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.exists() and filecmp.cmp(file, target, shallow=False)):
            file.replace(target)
    shutil.rmtree(unfinished)
