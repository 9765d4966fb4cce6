"""The training loop: explicit, resumable to the bit, over accelerate: one process, or several by DDP or FSDP2."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, set_seed
from torch import Tensor, nn

from msa.errors import TrainingError
from msa.model import MSAForCausalLM
from msa.model.bundle import MSAModel
from msa.training.batches import Batches
from msa.training.checkpoints import Checkpoints, leave_frozen_out
from msa.training.config import TrainConfig
from msa.training.data.collate import TrainingBatch
from msa.training.id_probe import IdProbe
from msa.training.log import TrainingLog
from msa.training.merged_lora import merged
from msa.training.objective import LossWeights, compute_losses
from msa.training.optimizers import build_optimizers
from msa.training.parameters import choose_trainable
from msa.training.past import PastDocuments
from msa.training.sharding import ShardedNetwork

log = logging.getLogger(__name__)

_WHOLE_NETWORKS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# what may differ between the parts of one run
_FREE = ("out", "stop_after_minutes", "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints")


class TrainingStep(nn.Module):
    """The objective as a module, so that the engine sees one forward pass per micro-batch."""

    def __init__(self, lm: MSAForCausalLM, prefix_ids: Tensor, config: TrainConfig) -> None:
        super().__init__()
        self.lm = lm
        self._freeze, self._checkpoint = config.freeze_documents, config.checkpoint_documents
        self.past = PastDocuments()
        probed = any(phase.weights.id_probe for phase in config.phases)
        self.id_probe = IdProbe(lm.config).to(lm.device) if probed else None
        self._reaches_all = config.sharded
        self.prefix_ids: Tensor
        self.register_buffer("prefix_ids", prefix_ids, persistent=False)

    def forward(
        self, batch: TrainingBatch, weights: LossWeights, past_documents: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its parts; keeps up to ``past_documents`` documents for later steps."""
        losses = compute_losses(
            self.lm,
            batch,
            self.prefix_ids,
            weights,
            freeze_documents=self._freeze,
            checkpoint_documents=self._checkpoint,
            past=self.past.memory if past_documents else None,
            probe=self.id_probe,
        )
        if losses.memory is not None:
            self.past.add(losses.memory, past_documents)
        total = losses.total
        if torch.is_grad_enabled() and (self._reaches_all or not total.requires_grad):
            # nothing here reaches a trained weight, for instance routers where no row routes: a step of zeros.
            # Processes that share out gradients must all have the same ones
            total = total + 0.0 * torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()
        return total, losses.parts


class Trainer:
    """Runs a configuration from its last checkpoint to its end.

    Args:
        model: what to train, in float32; it is changed in place.
        config: the run.
        batches: token batches by step.
        evaluate: called every ``evaluate_every`` steps and at the end with the network and the step; what it returns is
            logged.
        accelerator: None: one is made for ``config.precision``.

    Raises:
        TrainingError: an ``out`` folder with checkpoints of another configuration, or an engine of accelerate's that
            splits the network over processes.
    """

    def __init__(
        self,
        model: MSAModel,
        config: TrainConfig,
        batches: Batches,
        *,
        evaluate: Callable[[MSAForCausalLM, int], dict[str, float]] | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.config, self._batches, self._evaluate = config, batches, evaluate
        self.model = model
        self.accelerator = accelerator or Accelerator(
            mixed_precision="no" if config.merges_lora else config.precision,
            cpu=model.device.type == "cpu",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if config.micro_batches % self.accelerator.num_processes:
            raise TrainingError(
                f"micro_batches {config.micro_batches} do not divide over {self.accelerator.num_processes} processes: "
                f"set them to a multiple of {self.accelerator.num_processes}"
            )
        if self.accelerator.distributed_type not in _WHOLE_NETWORKS:
            raise TrainingError(
                f"accelerate was asked for {self.accelerator.distributed_type.value}, which splits the network over "
                "processes in its own way: start it with torchrun alone, and set 'sharded' to split it"
            )
        set_seed(config.seed)
        self._chunk_size = model.lm.config.chunk_size
        model.lm.separate_projections()  # accelerate's checkpoints would drop weights that share a storage
        self._lm = choose_trainable(model.lm, config)
        self._lm.train()
        self._lm.model.checkpoint_layers = config.checkpoint_layers
        step = TrainingStep(self._lm, torch.tensor(model.protocol.prefix_ids, dtype=torch.long), config)
        self._past = step.past
        self._sharded: ShardedNetwork | None = None
        self._step: nn.Module
        if config.sharded and self.accelerator.num_processes > 1:
            self._sharded = ShardedNetwork(step.to(self.accelerator.device))
            self._step, self._optimizers = step, build_optimizers(step, config)
        else:
            self._step, *self._optimizers = self.accelerator.prepare(step, *build_optimizers(step, config))
        if config.trainable != "all" and self._sharded is None:
            leave_frozen_out(self.accelerator)
        # a sharded checkpoint is for as many processes as wrote it
        shards = self.accelerator.num_processes if self._sharded is not None else None
        settings = {**dataclasses.asdict(config), "sharded": shards, "data": batches.digest}
        self._checkpoints = Checkpoints(
            Path(config.out) / "checkpoints",
            config.keep_checkpoints,
            {name: value for name, value in settings.items() if name not in _FREE},
        )
        self.done = self._checkpoints.resume(self.accelerator, self._load_more)

    def run(self) -> bool:
        """Train to the end, or until ``stop_after_minutes``; returns whether the run is complete.

        Raises:
            TrainingError: a loss or gradient that is not finite; the step is not taken, and the last checkpoint stays.
        """
        started, total = time.monotonic(), self.config.total_steps
        journal = (
            TrainingLog(Path(self.config.out), self.config, self._lm, self.accelerator.num_processes, self.done)
            if self.accelerator.is_main_process
            else None
        )
        try:
            with _uncast(self._lm, self.config):
                for step in range(self.done, total):
                    parts, norm, tokens = self._optimise(step)
                    self.done = step + 1
                    if journal is not None:
                        journal.step(self.done, self.config.phase_at(step)[1].name, parts, norm, tokens)
                    if self.done % self.config.evaluate_every == 0 or self.done == total:
                        self._report(journal)
                    stopping = self._should_stop(started) and self.done < total
                    if self.done % self.config.checkpoint_every == 0 or self.done == total or stopping:
                        self._checkpoints.save(self.accelerator, self.done, self._save_more)
                    if stopping:
                        log.info("stopped at step %d of %d; run it again to go on", self.done, total)
                        return False
        finally:
            if journal is not None:
                journal.close()
        if self._sharded is not None:
            self._sharded.gather()  # for good: whoever reads the network's parameters next finds all of them
        last = self.config.phases[-1].chunk_size if self.config.trainable == "all" else 0
        self._lm.config.chunk_size = last or self._chunk_size
        self._lm.eval()
        return True

    def _save_more(self, folder: Path) -> None:
        """What this process adds to a checkpoint."""
        if self._sharded is not None:
            self._sharded.save(folder / "sharded", self._optimizers)
        self._past.save(folder / f"past-{self.accelerator.process_index}.safetensors")

    def _load_more(self, folder: Path) -> None:
        if self._sharded is not None:
            self._sharded.load(folder / "sharded", self._optimizers)
        self._past.load(folder / f"past-{self.accelerator.process_index}.safetensors", self.accelerator.device)

    def _should_stop(self, started: float) -> bool:
        """Whether the time is up, decided by the main process for all."""
        limit = self.config.stop_after_minutes * 60
        up = torch.tensor(float(limit > 0 and time.monotonic() - started > limit), device=self.accelerator.device)
        return bool(self.accelerator.reduce(up, reduction="sum") > 0)

    def _optimise(self, step: int) -> tuple[dict[str, float], float, int]:
        """One optimiser step; returns mean losses over all micro-batches, the gradient norm and the real tokens."""
        accelerator, config = self.accelerator, self.config
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step) * group.get("rate", 1.0)
        phase = config.phase_at(step)[1]
        self._lm.config.chunk_size = phase.chunk_size or self._chunk_size
        if step and config.phase_at(step - 1)[1].chunk_size != phase.chunk_size:
            self._past.clear()
        folder = Path(config.out) / "snapshots"
        if config.refresh_every:
            with torch.no_grad(), self.computing():
                self._batches.refresh(self._lm, step, folder, writes=accelerator.is_main_process)
        mine = range(accelerator.process_index, config.micro_batches, accelerator.num_processes)
        sums: dict[str, Tensor] = {}
        tokens = 0
        for count, micro in enumerate(mine, start=1):
            batch = self._batches.batch(step, micro)
            tokens += batch.num_tokens
            batch = batch.to(accelerator.device)
            with self.computing(), self._averaging(count == len(mine)):
                total, parts = self._step(batch, phase.weights, phase.past_documents)
                # gradients are summed here and averaged over processes by the engine
                accelerator.backward(total / len(mine))
            for name, loss in {"loss": total, **parts}.items():
                sums[name] = sums.get(name, torch.zeros((), device=loss.device)) + loss.detach().float() / len(mine)
        names = sorted(sums)
        reduced = accelerator.reduce(torch.stack([sums[name] for name in names]), reduction="mean")
        means = dict(zip(names, reduced.tolist(), strict=True))
        norm = self._clip()
        if not all(map(math.isfinite, means.values())) or not (math.isfinite(norm) or self._loss_scale_too_large()):
            for optimizer in self._optimizers:
                optimizer.zero_grad()
            raise TrainingError(
                f"step {step + 1}: a loss or gradient is not finite ({means}, norm {norm}); nothing was changed by "
                f"this step. Lower the learning rate, or go on from the last checkpoint with another seed"
            )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        total_tokens = accelerator.reduce(torch.tensor(tokens, device=accelerator.device), reduction="sum")
        return means, norm, int(total_tokens)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """All weights, in the run's precision, and merged ones, which passes outside compute again at every use."""
        with (
            self._sharded.whole() if self._sharded is not None else nullcontext(),
            self.accelerator.autocast(),
            merged(self._lm) if self.config.merges_lora else nullcontext(),
        ):
            yield

    def _averaging(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: after the ``last`` one gradients are averaged over processes."""
        if self._sharded is not None:
            self._sharded.average_at(last)
            return nullcontext()
        waiting: AbstractContextManager[None] = self.accelerator.no_sync(self._step)
        return nullcontext() if last else waiting

    def _clip(self) -> float:
        """Scale gradients down to ``max_grad_norm``; returns the norm they had."""
        if self._sharded is not None:
            return self._sharded.clip_gradients(self.config.max_grad_norm)
        return float(self.accelerator.clip_grad_norm_(self._step.parameters(), self.config.max_grad_norm))

    def _loss_scale_too_large(self) -> bool:
        """In fp16, where gradients that are not finite say that their scale has to fall: the step is passed over."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1.0

    def _report(self, journal: TrainingLog | None) -> None:
        if self._evaluate is None:
            return
        with torch.no_grad(), self.computing():
            metrics = self._evaluate(self._lm, self.done)
        if journal is not None:
            _, phase = self.config.phase_at(self.done - 1)
            journal.metrics(self.done, metrics, held_out=phase.holds_out)


def _uncast(lm: MSAForCausalLM, config: TrainConfig) -> AbstractContextManager[None]:
    """In mixed precision: PEFT does not cast what LoRA reads to float32, which autocast would only cast back."""
    if config.trainable != "lora" or config.precision == "no" or config.merges_lora:
        return nullcontext()
    from peft.helpers import disable_input_dtype_casting

    casting: AbstractContextManager[None] = disable_input_dtype_casting(lm)
    return casting
