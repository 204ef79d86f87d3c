"""What a person sees while a stage is trained: how far it is, how long it will take, and how well it does."""

import sys
from time import perf_counter
from typing import Any

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm


class Progress(Callback):
    """A line that moves with steps, time left and loss; for each validation one that stays. Logs steps a second.

    Lightning's own bar knows no end of an endless epoch, and counts a resumed run from its checkpoint on.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True
        done = f", {trainer.global_step} of them done" if trainer.global_step else ""
        trained = sum(weight.numel() for weight in pl_module.parameters() if weight.requires_grad) / 1e6
        if trainer.is_global_zero:
            print(f"{trained:.1f} million weights, {trainer.max_steps} steps{done}", file=sys.stderr)
        self.bar = tqdm(
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            desc="steps",
            unit="step",
            # A file gets a line a minute.
            mininterval=0.5 if sys.stderr.isatty() else 60,
            smoothing=0.05,
            dynamic_ncols=True,
            disable=not trainer.is_global_zero,
        )
        self.since, self.steps = perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.bar.set_postfix_str(f"loss {float(outputs['loss']):.3f}", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)
        self.steps += 1
        pl_module.log("train/steps_per_second", self.steps / (perf_counter() - self.since))
        if self.steps >= trainer.log_every_n_steps:
            self.since, self.steps = perf_counter(), 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {n.removeprefix("val/"): v for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
        told = "  ".join(f"{name} {float(value):.3f}" for name, value in sorted(found.items()))
        if trainer.is_global_zero:
            tqdm.write(f"step {trainer.global_step}, validation: {told}", file=sys.stderr)
        self.since, self.steps = perf_counter(), 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not self.begun:
            print(f"all {trainer.global_step} steps were done before", file=sys.stderr)
