"""The record of a run: JSONL for programs, TensorBoard and a PNG of the curves for people."""

from __future__ import annotations

import json
import logging
import math
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from msa.training.config import TrainConfig

log = logging.getLogger(__name__)

_EMBEDDINGS = re.compile(r"embed_tokens|lm_head")


class TrainingLog:
    """Writes ``log.jsonl``, ``tensorboard/`` and, when closed, ``curves.png`` in the run's folder.

    Losses are means over a phase's steps since the last line of losses. Throughput counts real tokens; utilisation is
    the share of the matmul peak measured at the start that :func:`operations_per_token` would need.

    Args:
        folder: of the run.
        config: of the run.
        network: that is trained.
        processes: that train it together.
        done: steps that were done before: what TensorBoard has of later ones, which are done again, is dropped.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, network: nn.Module, processes: int = 1, done: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._every, self._total = folder, config.log_every, config.total_steps
        self._file = open(folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        if not _ends_with_newline(folder / "log.jsonl"):
            self._file.write("\n")  # a killed process's torn line must not swallow the next one
        self._board = _board(folder / "tensorboard", done)
        self._operations = operations_per_token(network)
        self._phase, self._losses = "", dict[str, list[float]]()
        device = next(network.parameters()).device
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        self._peak = processes * matmul_peak(device, dtypes.get(config.precision, torch.float32))
        self._begin()

    def step(self, step: int, phase: str, losses: dict[str, float], norm: float, tokens: int) -> None:
        """Note one optimiser step; written every ``log_every`` steps."""
        self._steps += 1
        self._tokens += tokens
        if phase != self._phase:
            self._phase, self._losses = phase, {}
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value)
        if step % self._every and step != self._total:
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate, per_step = self._tokens / seconds, seconds / self._steps
        losses, self._losses = {name: statistics.fmean(values) for name, values in self._losses.items()}, {}
        record = {
            "step": step,
            "phase": phase,
            **{f"loss/{name}" if name != "loss" else name: value for name, value in losses.items()},
            "gradient_norm": norm if math.isfinite(norm) else None,
            "tokens_per_second": rate,
            "seconds_per_step": per_step,
            "utilisation": self._operations * rate / self._peak,
        }
        self._write(record)
        parts = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        left = (self._total - step) * per_step / 60
        log.info("%d/%d %s: %s, %.0f tokens/s, %.1f min left", step, self._total, phase, parts, rate, left)
        self._begin()

    def metrics(self, step: int, metrics: dict[str, float], *, held_out: bool = True) -> None:
        """Note an evaluation, on held-out data or on what is trained on."""
        data = "held_out" if held_out else "training"
        self._write({"step": step, **{f"{data}/{name}": value for name, value in metrics.items()}})
        shown = ("copied", "ids_exact", "answer_exact", "recall@1/mean", "recall@16/mean", "recalled")
        values = " ".join(f"{n} {metrics[n]:.3f}" for n in shown if n in metrics)
        log.info("%d %s: %s", step, data.replace("_", " "), values)
        self._begin()

    def close(self) -> None:
        """Finish the files and draw the curves."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        draw_curves(self._folder / "log.jsonl", self._folder / "curves.png")

    def _begin(self) -> None:
        """What is measured next begins now."""
        self._since, self._steps, self._tokens = time.monotonic(), 0, 0

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if self._board is not None and isinstance(value, float):
                self._board.add_scalar(name, value, record["step"])


def operations_per_token(network: nn.Module) -> int:
    """Floating-point operations that training on one token takes in the products with weights.

    Two for each weight forwards, two for each that gradients of activations go back through (those above the lowest
    layer that is trained), two for each that is trained: 6 x parameters where all are. Attention, recomputation and the
    output layer, which reads labelled positions alone, are not counted.
    """
    weights = [(name, p) for name, p in network.named_parameters() if not _EMBEDDINGS.search(name)]
    trained = [(name, p) for name, p in weights if p.requires_grad]
    lowest = min((_layer_of(name) for name, _ in trained), default=math.inf)
    passed = sum(p.numel() for name, p in weights if _layer_of(name) >= lowest)
    return 2 * (sum(p.numel() for _, p in weights) + passed + sum(p.numel() for _, p in trained))


def _layer_of(name: str) -> int:
    """The decoder layer of a weight; of those beside the layers one above all."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    return int(found[1]) if found else sys.maxsize


def _board(folder: Path, done: int) -> Any:
    """TensorBoard's writer; None, and a warning, where it is not installed: the JSONL has everything."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("tensorboard is not installed; the run is logged in log.jsonl alone")
        return None
    return SummaryWriter(str(folder), purge_step=done + 1 if done else None)


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Best of a few products of matrices ``[size, size]``, in floating-point operations per second."""
    on_gpu = device.type == "cuda"
    size = size or (8192 if on_gpu else 1024)  # a GPU takes longer to start a small product than to compute it
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(4):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ a
        if on_gpu:
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _ends_with_newline(path: Path) -> bool:
    """Whether the next line can be appended as it is."""
    content = path.read_bytes()
    return not content or content.endswith(b"\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a ``log.jsonl``; of steps logged again after a resumption, the last counts."""
    records: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line a killed process was writing
            continue
        records[record["step"], "loss" in record] = record
    return [records[key] for key in sorted(records)]


def draw_curves(path: Path, picture: Path) -> None:
    """Losses and held-out metrics over the steps."""
    try:
        import matplotlib
    except ImportError:
        log.warning("matplotlib is not installed; %s is not drawn", picture.name)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_log(path)
    if not records:
        return
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    logged = sorted({name for record in records for name in record})
    losses = [name for name in logged if name.startswith("loss/")]
    wanted = ("ids_exact", "answer_exact", "recall@1/mean", "recall@16/mean")
    evaluated = [name for name in logged if name.removeprefix("held_out/").removeprefix("training/") in wanted]
    for axis, names, title in ((left, losses, "Training losses"), (right, evaluated, "Evaluation")):
        for name in names:
            points = [(record["step"], record[name]) for record in records if name in record]
            label, marker = name.removeprefix("loss/"), "." if len(points) < 20 else ""
            axis.plot(*zip(*points, strict=True), label=label, marker=marker)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if names:
            axis.legend()
    if any(name.startswith("loss/") for record in records for name in record):
        left.set_yscale("log")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
