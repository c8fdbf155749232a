"""Train one task: epochs of batches, the optimizer and its schedule, the loss curve."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from structalign.config.schema import Config, TrainConfig
from structalign.methods.base import Batch, Method, Terms, total
from structalign.training.graphs import graphed_encoders, replaying
from structalign.training.loader import TrainingSet
from structalign.training.loss_curve import FLUSH_STEPS, LossCurve
from structalign.training.resume import ResumeFile
from structalign.util import distributed
from structalign.util.errors import UserError
from structalign.util.log import log, progress_bar
from structalign.util.seeding import generator, seed_everything


@dataclass(frozen=True)
class Cost:
    """What training a task took.

    Attributes
    ----------
    seconds : float
        Wall-clock time of the training loop.
    steps : int
        Optimizer steps.
    trained_parameters : int
        Parameters that had gradients.
    """

    seconds: float
    steps: int
    trained_parameters: int


def learning_rate_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Factor on the learning rate at `step` of `total`, after a linear warm-up over `warmup` steps.

    `cosine` is half a cosine from 1 to 0; `released` is the full one of the released code, which comes back up
    to 1 in the second half (METHOD.md, section 4).
    """
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    cycles = 0.5 if schedule == "cosine" else 1.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 2.0 * cycles * progress)))


def autocast(precision: str, device: torch.device) -> torch.autocast | nullcontext[None]:
    """Mixed precision for `train.precision`: auto is bf16 on a GPU that has it, full precision elsewhere."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and _has_bf16(device) else "fp32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):  # the question is about the present GPU
        return torch.cuda.is_bf16_supported(including_emulation=False)


SLOW_SAVE = 1.0
"""Seconds that writing the resume file may take after every epoch; if it takes longer, it is written less often."""

SAVE_SHARE = 0.05
"""Share of the time that writing may then take."""


class Trainer:
    """Trains a method on one task.

    Parameters
    ----------
    method : Method
        `start_task` has been called.
    data : TrainingSet
        The task's videos and captions.
    config : Config
        All parameters.
    task : int
        The task, from 1.
    validate : callable, optional
        Gives R@1 of the present model. Needed for `train.select=best_on_val` and `best_on_test` alone.
    resume : ResumeFile, optional
        Where an interrupted training left off, and where this one saves its state.

    Raises
    ------
    UserError
        If the task has fewer than two pairs of video and caption.
    """

    def __init__(
        self,
        method: Method,
        data: TrainingSet,
        config: Config,
        task: int,
        validate: Callable[[], float] | None = None,
        resume: ResumeFile | None = None,
    ) -> None:
        self.method, self.data, self.config, self.task = method, data, config, task
        self.validate, self.resume, self.next_save = validate, resume, 0.0
        self.settings: TrainConfig = config.train
        self.device = method.retriever.device
        groups = method.parameter_groups()
        self.graphs = graphed_encoders(method, config)
        self.weights = [weight for group in groups for weight in group["params"]]
        self.optimizer = torch.optim.AdamW(
            groups, eps=self.settings.eps, weight_decay=self.settings.weight_decay, fused=True
        )
        keys = " and ".join(sorted({f"train.{group['key']}" for group in groups}))
        self.advice = f"Lower {keys}, or set train.precision=fp32"
        self.steps_per_epoch = data.steps_per_epoch(self.settings.batch_size)
        if not self.steps_per_epoch:
            raise UserError(
                f"task {task}: {data.pairs} pair of video and caption, but the contrastive loss needs at least two: "
                "raise split.shots, add captions, or lower K"
            )
        steps = self.steps_per_epoch * self.settings.epochs
        self.steps = min(steps, self.settings.max_steps or steps)
        self.epochs = math.ceil(self.steps / self.steps_per_epoch)
        warmup = round(self.settings.warmup * self.steps) if task == 1 else 0
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: learning_rate_factor(step, self.steps, warmup, self.settings.schedule),
        )

    def run(self, curve: Path) -> Cost:
        """Train for `train.epochs` epochs or `train.max_steps` steps; write the loss curve, and say what it took.

        Raises
        ------
        UserError
            If the loss or a trained weight stops being a finite number, with the task and the step.
        """
        start = time.perf_counter()
        best = _BestEpoch(self.weights, self.settings.patience, self.settings.min_epochs)
        loss_curve = LossCurve(curve, self.task, self.advice)
        with loss_curve as rows, progress_bar(self.steps, f"task {self.task}", "step") as bar:
            first, seconds = self._restore(rows, best)
            bar.update(rows.step)
            for epoch in range(first, self.epochs + 1):
                self._epoch(epoch, rows, bar)
                if self.validate is not None and self._judge(epoch, best, self.validate):
                    log.info(f"task {self.task}: stopped after epoch {epoch}, best was epoch {best.epoch}")
                    break
                self._save(epoch, rows, best, seconds + time.perf_counter() - start)
        copy_into(self.weights, best.kept or self.method.averaged_weights() or [])
        self._check_weights(rows.step)
        seconds += time.perf_counter() - start
        return Cost(seconds, rows.step, self.method.trained_parameters())

    def _check_weights(self, step: int) -> None:
        """Refuse weights that the last step made useless: no loss was computed with them."""
        if not all(bool(weight.isfinite().all()) for weight in self.weights):
            raise UserError(
                f"task {self.task}: the weights are not finite after step {step}, the last. {self.advice}"
            )

    def _judge(self, epoch: int, best: _BestEpoch, validate: Callable[[], float]) -> bool:
        """Score the weights that would be kept now; return whether to stop."""
        kept, last = self.method.averaged_weights(), []
        if kept is not None:
            last = [weight.detach().clone() for weight in self.weights]
            copy_into(self.weights, kept)
        stop = best.stop(epoch, distributed.broadcast_from_rank0(validate))
        copy_into(self.weights, last)
        return stop

    def _save(self, epoch: int, rows: LossCurve, best: _BestEpoch, seconds: float) -> None:
        """Note everything that the rest of the training depends on; random states follow from the epoch."""
        start = time.perf_counter()
        if self.resume is None or epoch == self.epochs or distributed.rank() > 0 or start < self.next_save:
            return
        state = {
            "epoch": epoch,
            "seconds": seconds,
            "weights": [weight.detach() for weight in self.weights],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "method": self.method.training_state(),
            "curve": rows.text(),
            "best": best.state(),
        }
        self.resume.save(state)
        took = time.perf_counter() - start
        # Gigabytes on a shared file system can take longer than an epoch.
        self.next_save = start + took / SAVE_SHARE if took > SLOW_SAVE else 0.0

    @torch.no_grad()
    def _restore(self, rows: LossCurve, best: _BestEpoch) -> tuple[int, float]:
        """Restore an interrupted training; return the epoch to start with and the seconds spent before."""
        # Rank 0 has saved it, on its own machine: the others have no file if they are on another one.
        state = None if self.resume is None else distributed.broadcast_from_rank0(self.resume.load)
        if state is None:
            return 1, 0.0
        for weight, saved in zip(self.weights, state["weights"], strict=True):
            weight.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.method.load_training_state(state["method"])
        rows.restore(state["curve"])
        best.load_state(state["best"])
        log.info(f"task {self.task}: resuming after epoch {state['epoch']} of {self.epochs}")
        return state["epoch"] + 1, state["seconds"]

    def _epoch(self, epoch: int, rows: LossCurve, bar: tqdm) -> None:
        # Everything random is seeded anew per epoch, so that an epoch depends on its number and not on history.
        # Dropout and router noise differ between ranks; rank 0 draws as a single process does.
        number = distributed.rank()
        seed_everything(self.config.seed, self.task, epoch, *([2, number] if number else []))
        self.method.start_epoch(generator(self.config.seed, self.task, epoch, 1))
        self.method.retriever.train()
        for batch in islice(self._batches(epoch), self.steps - rows.step):
            rate = float(self.schedule.get_last_lr()[0])
            terms = self._step(batch)
            rows.add(epoch, terms, rate)
            if rows.step % FLUSH_STEPS == 0:
                loss = rows.flush(epoch)
                bar.set_postfix(epoch=epoch, loss=f"{loss:.3f}", lr=f"{rate:.1e}", refresh=False)
            bar.update()
        rows.flush(epoch)
        self.method.finish_epoch()

    def _batches(self, epoch: int) -> Iterator[Batch]:
        order = generator(self.config.seed, self.task, epoch)
        return self.data.batches(self.settings, order, self.device)

    def _step(self, batch: Batch) -> Terms:
        with autocast(self.settings.precision, self.device), replaying(self.graphs):
            terms = self.method.loss(batch)
            loss = total(terms)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(self.weights)
        nn.utils.clip_grad_norm_(self.weights, self.settings.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.method.finish_step()
        return terms


@torch.no_grad()
def copy_into(weights: list[Tensor], values: list[Tensor]) -> None:
    """Copy values into weights, if there are any."""
    for weight, value in zip(weights, values, strict=bool(values)):
        weight.copy_(value)


class _BestEpoch:
    """Remember the weights of the epoch with the best R@1, and say when to stop."""

    def __init__(self, weights: list[Tensor], patience: int, min_epochs: int) -> None:
        self.weights, self.patience, self.min_epochs = weights, patience, min_epochs
        self.epoch, self.score = 0, -1.0
        self.kept: list[Tensor] = []

    def stop(self, epoch: int, score: float) -> bool:
        if score > self.score:
            self.epoch, self.score = epoch, score
            self.kept = [weight.detach().clone() for weight in self.weights]
        return epoch >= self.min_epochs and epoch - self.epoch >= self.patience

    def state(self) -> dict[str, object]:
        return {"epoch": self.epoch, "score": self.score, "kept": self.kept}

    def load_state(self, state: dict[str, Any]) -> None:
        self.epoch, self.score, self.kept = state["epoch"], state["score"], state["kept"]
