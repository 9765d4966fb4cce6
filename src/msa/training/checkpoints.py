"""Checkpoints of a training run: complete or absent, whenever the process is killed.

A checkpoint is a folder ``checkpoints/step-00001200`` written by accelerate (weights, optimiser, random states) under a
temporary name and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn

from msa.errors import TrainingError

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        keep: how many stay; older ones are deleted after a newer one is complete.
        fingerprint: what a run must agree with to be resumed, for instance its configuration.
    """

    def __init__(self, folder: Path, keep: int, fingerprint: dict[str, Any]) -> None:
        self._folder, self._keep = folder, keep
        self._fingerprint = _without_none(json.loads(json.dumps(fingerprint)))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name)))

    def save(self, accelerator: Accelerator, step: int, add: Callable[[Path], None]) -> None:
        """Write the state after ``step`` optimiser steps; every process may ``add`` files of its own to the folder."""
        final = self._folder / f"step-{step:08d}"
        temporary = self._folder / f".{final.name}.incomplete"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with _quiet_accelerate():
            accelerator.save_state(str(temporary))
        add(temporary)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (temporary / "run.json").write_text(json.dumps({"step": step, "run": self._fingerprint}, indent=1))
            _sync(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            _sync_folder(self._folder)
            for old in self.steps()[: -self._keep]:
                shutil.rmtree(self._folder / f"step-{old:08d}")
        accelerator.wait_for_everyone()

    def resume(self, accelerator: Accelerator, read: Callable[[Path], None]) -> int:
        """Load the newest checkpoint into what the accelerator has prepared; returns its step, 0 where there is none.

        ``read`` gets the folder, for what ``add`` of :meth:`save` put there.

        Raises:
            TrainingError: it belongs to another configuration, which is named, or not every process sees it.
        """
        steps = self.steps()
        newest = torch.tensor([steps[-1] if steps else 0], device=accelerator.device)
        if bool((accelerator.gather(newest) != newest).any()):
            raise TrainingError(
                f"the processes do not see the same checkpoints in {self._folder}: 'out' must be a folder they share"
            )
        if not steps:
            return 0
        folder = self._folder / f"step-{steps[-1]:08d}"
        saved = _without_none(json.loads((folder / "run.json").read_text()))
        differing = sorted(
            name
            for name in {*saved["run"], *self._fingerprint}
            if saved["run"].get(name) != self._fingerprint.get(name)
        )
        if differing:
            raise TrainingError(
                f"{folder} was made with other settings ({', '.join(differing)}); "
                f"use another 'out' folder, or put the settings back to go on"
            )
        accelerator.load_state(str(folder))
        read(folder)
        log.info("resumed from step %d", saved["step"])
        return int(saved["step"])


def leave_frozen_out(accelerator: Accelerator) -> None:
    """Have checkpoints hold what is trained alone; frozen weights are those that a run begins with, resumed or not."""

    def drop(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        for model, state in zip(models, weights, strict=True):
            for name in _frozen(model) & state.keys():
                del state[name]

    def load(models: list[nn.Module], folder: str) -> None:
        (model,) = models
        state = load_file(Path(folder) / SAFE_WEIGHTS_NAME)
        wanted = model.state_dict().keys() - _frozen(model)
        if state.keys() != wanted:
            differing = ", ".join(sorted(state.keys() ^ wanted)[:3])
            raise TrainingError(f"{folder} does not hold what this run trains ({differing}); use another 'out' folder")
        model.load_state_dict(state, strict=False)
        models.clear()  # accelerate would ask for all

    accelerator.register_save_state_pre_hook(drop)
    accelerator.register_load_state_pre_hook(load)


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


@contextlib.contextmanager
def _quiet_accelerate() -> Iterator[None]:
    """Errors alone: accelerate warns at each save of weights that are tied, which loading ties again."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _without_none(value: Any) -> Any:
    """Settings that are not set are left out, so that a later release's new ones do not part a run from its past."""
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
