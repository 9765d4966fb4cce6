"""Serve memories read-only with Ray Serve: replicas of the same OpenAI-compatible application as ``msa serve``.

pip install 'memory-sparse-attention[ray]'
python examples/ray_serve.py memories/ --replicas 2                      # http://127.0.0.1:8000/v1
serve run examples.ray_serve:application root=/shared/memories gpus=1    # on a cluster; every node sees the folder
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve

from msa.serving import ServerSettings, create_app
from msa.serving.keys import keys_from_environment

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

_SPARE = 8  # requests at a replica besides the questions that it admits


def build(settings: ServerSettings, *, replicas: int = 1, cpus: float = 1, gpus: float = 0) -> Application:
    """A Ray Serve application; each replica loads the model and opens the memories itself.

    Args:
        settings: must be read-only: one process writes a folder, and here are several.
        replicas: how many.
        cpus: CPUs that Ray keeps for each.
        gpus: GPUs of each; 0.5 puts two on one.

    Raises:
        ValueError: the settings are not read-only.
    """
    if not settings.read_only:
        raise ValueError("replicas of one folder must be read-only: pass ServerSettings(read_only=True)")

    def application() -> FastAPI:
        return create_app(settings)

    admitted = settings.max_concurrent + settings.max_waiting
    deployment = serve.deployment(serve.ingress(application)()).options(
        name="msa",
        num_replicas=replicas,
        # with room for /health, /metrics and for answering 429; what is beyond waits with Ray for whichever replica is
        # free, and where too many do Ray answers 503
        max_ongoing_requests=admitted + _SPARE,
        max_queued_requests=admitted,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return deployment.bind()


def application(arguments: dict[str, str]) -> Application:
    """For ``serve run`` and Serve's configuration files; arguments ``root``, ``model``, ``replicas``, ``gpus``."""
    gpus = float(arguments.get("gpus", 0))
    settings = ServerSettings(
        root=Path(arguments["root"]).absolute(),  # the replicas' own current folders are others
        model=arguments.get("model"),
        device="cuda" if gpus else "cpu",
        read_only=True,
        keys=keys_from_environment(),
    )
    return build(settings, replicas=int(arguments.get("replicas", 1)), gpus=gpus)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve memories read-only with Ray Serve.")
    parser.add_argument("root", help="the folder with the memories")
    parser.add_argument("--model", help="the model; by default the one that made the memories")
    parser.add_argument("--replicas", default="1", help="how many (default: 1)")
    parser.add_argument("--gpus", default="0", help="GPUs of each replica (default: 0)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    arguments = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.pop("port")})
    serve.run(application(arguments), blocking=True)


if __name__ == "__main__":
    main()
