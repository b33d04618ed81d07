"""Trains the packaged models on the training split of kjv: ``python -m bench.models.nano.train``.

Each model sees the text in windows of its context, cut at a new offset every epoch, until the cosine
schedule ends or validation perplexity stops falling; the weights kept are those of the best validation.
Every random number is drawn from (seed, epoch) or (seed, step), so an interrupted run that is resumed gives
the same weights, at the same thread count.

One thread a model is the efficient way; start the three side by side with ``--only``. With glibc's
allocator told to keep its memory (``MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
MALLOC_TOP_PAD_=268435456``) a step takes about a quarter less time.
"""

from __future__ import annotations

import csv
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.models.nano.architectures import (
    ARCHITECTURES,
    CONTEXT,
    Architecture,
    architecture,
    train_tokenizer,
)
from bench.models.nano.quick import Dropout, quicken
from bench.text import kjv

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

JOIN = "\n\n"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """How one model is trained. Rates are per step; ``batch`` counts windows of 256 tokens."""

    seed: int = 0
    epochs: int = 8
    batch: int = 16
    learning_rate: float = 2.5e-3
    final_rate: float = 5e-5
    warmup: int = 150
    weight_decay: float = 0.1
    dropout: float = 0.1
    beginnings: float = 0.1
    clip: float = 1.0
    validations_per_epoch: int = 2
    patience: int = 6


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds beside tensors."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def stale(self) -> int:
        """Validations since the best one."""
        return sum(row["step"] > self.best_step for row in self.curve)


def encode(tokenizer: PreTrainedTokenizerFast, split: str) -> NDArray[np.int64]:
    """Token ids [tokens] of a split's chapters, joined by a blank line and encoded as one text."""
    import numpy as np

    backend = tokenizer.backend_tokenizer
    return np.asarray(backend.encode(JOIN.join(kjv.documents(split))).ids, dtype=np.int64)


def disjoint(ids: NDArray[np.int64]) -> Tensor:
    """Whole windows [windows, 256] from the start of ``ids`` on; the tail is dropped."""
    import torch

    count = len(ids) // CONTEXT
    return torch.from_numpy(ids[: count * CONTEXT].reshape(count, CONTEXT))


def epoch_batches(
    ids: NDArray[np.int64], recipe: Recipe, epoch: int, first_token: int | None
) -> Iterator[Tensor]:
    """Shuffled batches [batch, 256] of one epoch, cut at an offset of its own.

    A share ``beginnings`` of the windows starts with ``first_token``, as a text does, so that the model
    knows that token.
    """
    import numpy as np
    import torch

    draw = np.random.Generator(np.random.PCG64([recipe.seed, epoch]))
    windows = disjoint(ids[1 + int(draw.integers(CONTEXT)) :])
    order = torch.from_numpy(draw.permutation(len(windows)))
    begin = torch.from_numpy(draw.random(len(windows)) < recipe.beginnings)
    if first_token is not None:
        shifted = torch.cat([torch.full((len(windows), 1), first_token), windows[:, :-1]], dim=1)
        windows = torch.where(begin[:, None], shifted, windows)
    for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
        yield windows[order[start : start + recipe.batch]]


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to ``final_rate``."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    phase = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return (
        recipe.final_rate + (recipe.learning_rate - recipe.final_rate) * (1 + math.cos(math.pi * phase)) / 2
    )


def window_losses(model: PreTrainedModel, windows: Tensor, batch: int = 32, fast: bool = False) -> Tensor:
    """Mean negative log-likelihood, nat/token, of each window [windows], over its 255 targets, float64.

    ``fast`` computes in bfloat16 (for the curve); otherwise in the model's own type.
    """
    import torch

    model.train(False)
    losses = []
    with torch.no_grad():
        for part in torch.split(windows, batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                logits = model(input_ids=part).logits
            scores = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), part[:, 1:], reduction="none"
            )
            losses.append(scores.double().mean(dim=1))
    return torch.cat(losses)


class Run:
    """One model's training: its tensors, its progress, and how both are saved and resumed."""

    def __init__(self, which: Architecture, recipe: Recipe, work: Path) -> None:
        import torch

        self.which, self.recipe, self.work = which, recipe, work / which.name
        self.tokenizer = train_tokenizer(kjv.documents("train"), which.begins_with)
        self.ids = encode(self.tokenizer, "train")
        self.validation = disjoint(encode(self.tokenizer, "validation"))
        torch.manual_seed(recipe.seed)
        self.model = which.build()
        quicken(self.model)
        self.dropout = Dropout(self.model, which.dropped, recipe.dropout)
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
                {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.best = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.progress = Progress()

    def save(self) -> None:
        """Write the checkpoint in one atomic replace: safetensors, with the progress as JSON metadata."""
        from safetensors.torch import save_file

        self.work.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"model.{name}": parameter.detach(), f"best.{name}": self.best[name]}
            tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq", "step")}
        metadata = {"progress": json.dumps(asdict(self.progress)), "recipe": json.dumps(asdict(self.recipe))}
        partial = self.work / "checkpoint.partial"
        save_file(tensors, partial, metadata=metadata)
        partial.replace(self.work / "checkpoint.safetensors")

    def resume(self) -> bool:
        """Continue from the checkpoint; False where there is none.

        Raises click.ClickException where it was made with another recipe.
        """
        import torch
        from safetensors import safe_open

        path = self.work / "checkpoint.safetensors"
        if not path.is_file():
            return False
        with safe_open(path, framework="pt") as file, torch.no_grad():
            metadata = file.metadata()
            if json.loads(metadata["recipe"]) != asdict(self.recipe):
                raise click.ClickException(f"{path} was made with another recipe; remove it to start afresh")
            self.progress = Progress(**json.loads(metadata["progress"]))
            for name, parameter in self.model.named_parameters():
                parameter.copy_(file.get_tensor(f"model.{name}"))
                self.best[name] = file.get_tensor(f"best.{name}")
                self.optimizer.state[parameter] = {
                    key: file.get_tensor(f"{key}.{name}") for key in ("exp_avg", "exp_avg_sq", "step")
                }
        return True

    def step(self, batch: Tensor, rate: float) -> float:
        """One optimizer step on ``batch`` [batch, 256]; returns the loss in nat/token."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.dropout.reseed(self.recipe.seed, self.progress.step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        return float(loss.detach())

    def validate(self, train_loss: float, rate: float) -> None:
        """Add a row to the curve, keep the weights where they are the best so far, and save."""
        loss = float(window_losses(self.model, self.validation, fast=True).mean())
        progress = self.progress
        row = {
            "step": progress.step,
            "train_loss": train_loss,
            "validation_loss": loss,
            "learning_rate": rate,
        }
        progress.curve.append(row)
        if loss < progress.best:
            progress.best, progress.best_step = loss, progress.step
            self.best = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def train(self) -> None:
        """Train to the end of the schedule, or until validation has not improved for ``patience`` times."""
        recipe, progress = self.recipe, self.progress
        first = self.ids[0].item() if self.which.begins_with else None
        per_epoch = len(list(epoch_batches(self.ids, recipe, 0, first)))
        # An offset near a whole window can cost an epoch its last batch: every epoch is cut to the shortest.
        per_epoch -= 1
        if per_epoch < recipe.validations_per_epoch:
            raise click.ClickException(
                f"the text has {len(self.ids)} tokens, too few for batches of {recipe.batch}"
            )
        steps, every = per_epoch * recipe.epochs, per_epoch // recipe.validations_per_epoch
        losses: list[float] = []
        for epoch in range(progress.step // per_epoch, recipe.epochs):
            for index, batch in enumerate(epoch_batches(self.ids, recipe, epoch, first)):
                if epoch * per_epoch + index < progress.step:
                    continue
                if index == per_epoch:
                    break
                started = time.perf_counter()
                rate = learning_rate(recipe, progress.step, steps)
                losses.append(self.step(batch, rate))
                if progress.step % every == 0 or progress.step == steps:
                    self.validate(sum(losses) / len(losses), rate)
                    losses = []
                progress.seconds += time.perf_counter() - started
                if not losses:
                    self.save()
                    self.report(steps)
            if progress.stale() >= recipe.patience:
                break

    def report(self, steps: int) -> None:
        """One line on how it goes."""
        row = self.progress.curve[-1]
        speed = self.progress.step * self.recipe.batch * CONTEXT / self.progress.seconds
        click.echo(
            f"{self.which.name} step {self.progress.step}/{steps} train {row['train_loss']:.4f} "
            f"validation {math.exp(row['validation_loss']):.3f} {speed:.0f} token/s"
        )

    def publish(self, out: Path) -> None:
        """Write the model's folder: weights of the best validation in float16, tokenizer, curve and card."""
        import torch
        from transformers import AutoModelForCausalLM

        folder = out / self.which.name
        folder.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.best[name])
        self.model.set_attn_implementation("eager")
        self.model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
        self.tokenizer.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        losses = {
            split: window_losses(model, disjoint(encode(self.tokenizer, split)))
            for split in ("validation", "test")
        }
        with (folder / "loss.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.progress.curve[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.progress.curve)
        (folder / "card.json").write_text(json.dumps(self.card(losses), indent=2) + "\n")

    def card(self, losses: dict[str, Tensor]) -> dict[str, Any]:
        """What is to be known of the model; held-out figures are of the float16 weights, run in float32."""
        import tokenizers
        import torch
        import transformers

        return {
            "model": self.which.name,
            "script": "python -m bench.models.nano.train",
            "text": {"name": "kjv", "split": "train", "sha256": kjv.TEXT_SHA256, "license": "public domain"},
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "recipe": asdict(self.recipe),
            "steps": self.progress.step,
            "best_step": self.progress.best_step,
            "training_tokens": self.progress.step * self.recipe.batch * CONTEXT,
            "distinct_training_tokens": len(self.ids),
            "seconds": round(self.progress.seconds, 1),
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "heldout": {
                split: {
                    "perplexity": math.exp(values.mean().item()),
                    "windows": len(values),
                    "first_window_losses": values[:8].tolist(),
                }
                for split, values in losses.items()
            },
        }


@click.command()
@click.option(
    "--only",
    type=click.Choice([entry.name for entry in ARCHITECTURES]),
    multiple=True,
    help="Train just these.",
)
@click.option("--resume", is_flag=True, help="Continue from the checkpoints in --work.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("nano-training"),
    show_default=True,
    help="Checkpoints.",
)
@click.option("--out", type=click.Path(path_type=Path), default=HERE, help="Where the models' folders go.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="The figures hold for this count."
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=Recipe.epochs,
    show_default=True,
    help="Length of the schedule.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Weights, order and dropout."
)
def main(
    only: tuple[str, ...], resume: bool, work: Path, out: Path, threads: int, epochs: int, seed: int
) -> None:
    """Train the packaged models, one after the other, and write their folders."""
    import torch

    torch.set_num_threads(threads)
    recipe = Recipe(seed=seed, epochs=epochs)
    for name in only or tuple(entry.name for entry in ARCHITECTURES):
        run = Run(architecture(name), recipe, work)
        if resume and run.resume():
            click.echo(f"{name} resumes at step {run.progress.step}")
        run.train()
        run.publish(out)
        click.echo(f"{name} is in {out / name}")


if __name__ == "__main__":
    main()
