"""Ways of answering for one run, which makes some of them anew for every sample or every group of questions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from msa.evaluation.alternatives.memn2n import MemN2N
from msa.evaluation.alternatives.registry import ALTERNATIVES, make
from msa.evaluation.alternatives.retrievers import TextEncoder
from msa.evaluation.types import Answerer
from msa.model.bundle import MSAModel
from msa.training.files import replace_file

logger = logging.getLogger(__name__)


class WayMaker:
    """Makes ways by their names; what does not depend on documents is made once, when it is first needed.

    The encoder of dense retrieval is loaded once. A network is trained once and kept in the run's folder as
    ``<way>.safetensors``, so a run that goes on asks the same one.

    Args:
        model: the backbone all ways share.
        folder: of the run.
        encoder: folder of the encoder, for the ways that need one.
    """

    def __init__(self, model: MSAModel, folder: Path, *, encoder: str | Path | None = None) -> None:
        self._model, self._folder, self._encoder_folder = model, folder, encoder
        self._encoder: TextEncoder | None = None
        self._networks: dict[str, MemN2N] = {}

    def __call__(self, name: str, **options: Any) -> Answerer:
        """See :func:`~msa.evaluation.alternatives.make`.

        Raises:
            CheckpointError: the run's folder holds a damaged network.
            ValueError, MSAError: as :func:`~msa.evaluation.alternatives.make`.
        """
        way = ALTERNATIVES.get(name)
        if way is not None and way.needs_encoder and self._encoder_folder is not None:
            if self._encoder is None:
                self._encoder = TextEncoder(self._encoder_folder)
            options["encoder"] = self._encoder
        if way is not None and way.train is not None:
            options["weights"] = self._network(name)
        return make(name, self._model, **options)

    def _network(self, name: str) -> MemN2N:
        if name not in self._networks:
            path = self._folder / f"{name}.safetensors"
            train = ALTERNATIVES[name].train
            if not path.is_file() and train is not None:
                logger.info("%s: training its network, which is kept in %s", name, path)
                self._folder.mkdir(parents=True, exist_ok=True)
                replace_file(path, train().save)
            self._networks[name] = MemN2N.load(path)
        return self._networks[name]
