"""The record of a run: JSONL for programs, TensorBoard and a PNG of the curves for people."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from msa.training.config import TrainConfig

log = logging.getLogger(__name__)


class TrainingLog:
    """Writes ``log.jsonl``, ``tensorboard/`` and, when closed, ``curves.png`` in the run's folder.

    Throughput counts real tokens; utilisation is the share of the matmul peak measured at the start that
    6 · parameters · tokens would need (recomputation and attention are not counted).
    """

    def __init__(self, folder: Path, config: TrainConfig, network: nn.Module, processes: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._every, self._total = folder, config.log_every, config.total_steps
        self._file = open(folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        if not _ends_with_newline(folder / "log.jsonl"):
            self._file.write("\n")  # a killed process's torn line must not swallow the next one
        self._board = _board(folder / "tensorboard")
        self._parameters = sum(p.numel() for name, p in network.named_parameters() if "embed_tokens" not in name)
        device = next(network.parameters()).device
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        self._peak = processes * matmul_peak(device, dtypes.get(config.precision, torch.float32))
        self._begin()

    def step(self, step: int, phase: str, losses: dict[str, float], norm: float, tokens: int) -> None:
        """Note one optimiser step; written every ``log_every`` steps."""
        self._steps += 1
        self._tokens += tokens
        if step % self._every and step != self._total:
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate, per_step = self._tokens / seconds, seconds / self._steps
        record = {
            "step": step,
            "phase": phase,
            **{f"loss/{name}" if name != "loss" else name: value for name, value in losses.items()},
            "gradient_norm": norm if math.isfinite(norm) else None,
            "tokens_per_second": rate,
            "seconds_per_step": per_step,
            "utilisation": 6 * self._parameters * rate / self._peak,
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


def _board(folder: Path) -> Any:
    """TensorBoard's writer; None, and a warning, where it is not installed: the JSONL has everything."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("tensorboard is not installed; the run is logged in log.jsonl alone")
        return None
    return SummaryWriter(str(folder))


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
