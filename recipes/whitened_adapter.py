"""Make the default model's shipped routers: whitened by the shipped calibration text, no training.

    python recipes/whitened_adapter.py MODEL.gguf src/msa/adapters/smollm2-135m-whitened.safetensors

Prints the file's SHA-256, which belongs into ``msa.zoo.MODELS``. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msa
from msa.model.adapter import file_checksum, save_adapter
from msa.model.bundle import model_fingerprint
from msa.zoo import DEFAULT_MODEL, MODELS


def main() -> None:
    """Convert, then keep the routers alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", help="GGUF file or folder of the backbone")
    parser.add_argument("adapter", type=Path, help="file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = msa.convert(args.backbone, Path(scratch) / "model", protocol=MODELS[DEFAULT_MODEL].protocol)
        model = msa.load(folder, dtype="bfloat16")
    metadata = {"name": f"{DEFAULT_MODEL}-whitened", "backbone": model_fingerprint(model.lm, routers=False)}
    save_adapter(model.lm, args.adapter, contains=".router_", metadata=metadata)
    sys.stdout.write(f"{file_checksum(args.adapter)}\n")


if __name__ == "__main__":
    main()
