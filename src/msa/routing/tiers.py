"""Where a memory's latents live while it is asked, and what that takes (paper §3.4.2).

Axes: C chunks, n_kv key/value heads, D head_dim, L router layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from msa.bank import BankSpec
from msa.errors import MemoryBudgetError
from msa.routing.cluster_index import check_share
from msa.routing.key_lists import lists_bytes

ROUTING_KEYS = ("exact", "half", "int8", "mapped")
CONTENT = ("mapped", "ram", "pinned")


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """Where latents are kept.

    Attributes:
        routing_keys: ``exact``: on the compute device as they are stored, selected as by float32; ``half``: there in
            bfloat16, normalised beforehand; ``int8``: there as eight-bit integers with a scale per chunk; ``mapped``:
            memory-mapped from disk, compared exactly.
        content: content keys and values: ``mapped``: on disk, only the winners are read; ``ram``: in RAM; ``pinned``:
            in page-locked RAM, from which a GPU fetches fastest; it takes one, see :meth:`check_available`.
        key_share: of the routing keys, how many a question may look at: 1: all of them; less: those of the most
            promising lists of like keys (:mod:`msa.routing.cluster_index`), which are made when the memory is opened.

    Raises:
        ValueError: an unknown word, or a share not above 0 and up to 1.
    """

    routing_keys: str = "exact"
    content: str = "mapped"
    key_share: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("routing_keys", ROUTING_KEYS), ("content", CONTENT)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        check_share(self.key_share)

    def check_available(self) -> None:
        """Make sure that this machine has what they are.

        Raises:
            ValueError: page-locked RAM without a GPU that it would be for.
        """
        if self.content == "pinned" and not torch.cuda.is_available():
            raise ValueError(
                "content 'pinned' is RAM page-locked for a CUDA GPU, but none is visible. Choose 'ram' or 'mapped'"
            )

    def needed_bytes(self, spec: BankSpec, num_chunks: int) -> tuple[int, int]:
        """Bytes the memory of ``num_chunks`` chunks takes on the compute device, and in RAM beside it."""
        values = num_chunks * len(spec.layers) * spec.num_key_value_heads * spec.head_dim
        stored = spec.torch_dtype.itemsize
        lengths = 2 * values // spec.head_dim if spec.torch_dtype == torch.bfloat16 else 0
        device = {
            "exact": values * stored + lengths,
            "half": values * 2,
            "int8": values + 4 * num_chunks * len(spec.layers),
            "mapped": 0,
        }[self.routing_keys]
        if self.key_share < 1:  # made once a segment, and held once more for all segments together
            device += 2 * len(spec.layers) * lists_bytes(num_chunks, spec.num_key_value_heads * spec.head_dim)
        return device, 0 if self.content == "mapped" else 2 * values * stored


def check_budget(tiers: Tiers, spec: BankSpec, num_chunks: int, device: torch.device) -> None:
    """Make sure that the memory fits before anything is loaded.

    Raises:
        MemoryBudgetError: it does not; the message tells what each tier would need and what is free.
    """
    on_device, in_ram = tiers.needed_bytes(spec, num_chunks)
    free_ram = free_host_bytes()
    free_device = free_ram
    if device.type == "cuda":
        # what torch holds for tensors to come counts as free
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free_device = torch.cuda.mem_get_info(device)[0] + held
    else:
        in_ram += on_device
        on_device = 0
    if on_device <= free_device and in_ram <= free_ram:
        return
    options = [
        f"routing keys {name}: {_gigabytes(Tiers(routing_keys=name).needed_bytes(spec, num_chunks)[0])}"
        for name in ROUTING_KEYS
    ]
    options += [
        f"content {name}: {_gigabytes(Tiers(content=name).needed_bytes(spec, num_chunks)[1])}" for name in CONTENT
    ]
    where = f"{_gigabytes(free_device)} free on {device} and " if device.type == "cuda" else ""
    raise MemoryBudgetError(
        f"the latents of {num_chunks:,} chunks do not fit with routing keys {tiers.routing_keys} and content "
        f"{tiers.content}: {where}{_gigabytes(free_ram)} of RAM free. They would need: {'; '.join(options)}. "
        "Choose smaller tiers"
    )


def free_host_bytes() -> int:
    """RAM that can be taken without swapping, within the limit of the container if there is one."""
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text().strip()
        if text != "max":
            free = min(free, max(int(text) - int(used.read_text()), 0))
    except (OSError, ValueError):
        pass
    return free


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
