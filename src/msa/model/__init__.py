"""The network: configuration, decoder, memory views and checkpoints, on a single device."""

from transformers import AutoConfig, AutoModelForCausalLM

from msa.model.attention import PrefixMemory
from msa.model.cache import KVCache
from msa.model.configuration_msa import MSAConfig
from msa.model.memory_view import DocumentMemory, MemoryView, SelectedMemory
from msa.model.modeling_msa import MSAForCausalLM, MSAOutput
from msa.model.running_cache import RunningCache

AutoConfig.register("msa", MSAConfig, exist_ok=True)
AutoModelForCausalLM.register(MSAConfig, MSAForCausalLM, exist_ok=True)

__all__ = [
    "DocumentMemory",
    "KVCache",
    "MSAConfig",
    "MSAForCausalLM",
    "MSAOutput",
    "MemoryView",
    "PrefixMemory",
    "RunningCache",
    "SelectedMemory",
]
