"""Memory Parallel (paper §3.4.2): one memory over several processes, each holding a shard of whole documents."""

from msa.parallel.encoding import (
    ENCODING_TIMEOUT_S,
    begin_encoding,
    empty_memory,
    encode_across_ranks,
    end_encoding,
    follow_encoding,
    lead_encoding,
)
from msa.parallel.leading import Leader
from msa.parallel.led_library import LedLibrary, LedMemories, follow_memories
from msa.parallel.ranks import Ranks, init_from_environment, shard_of
from msa.parallel.sharded_library import ShardedLibrary
from msa.parallel.sharded_memory import Shard, ShardedMemory

__all__ = [
    "ENCODING_TIMEOUT_S",
    "Leader",
    "LedLibrary",
    "LedMemories",
    "Ranks",
    "Shard",
    "ShardedLibrary",
    "ShardedMemory",
    "begin_encoding",
    "empty_memory",
    "encode_across_ranks",
    "end_encoding",
    "follow_encoding",
    "follow_memories",
    "init_from_environment",
    "lead_encoding",
    "shard_of",
]
