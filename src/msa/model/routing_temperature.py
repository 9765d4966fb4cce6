"""τ of the routing loss and of weighed ids, of which the config and a tensor tell: one place that sets both."""

from __future__ import annotations

from msa.model.modeling_msa import MSAForCausalLM


def set_routing_temperature(lm: MSAForCausalLM, temperature: float) -> None:
    """Give the routing loss and the weighing of ids another temperature.

    A routing bias keeps the one it has: its strength α was trained with that, and another would make the attention of
    every selected document stronger or weaker at once.
    """
    if lm.config.routing_bias_temperature is None:
        lm.config.routing_bias_temperature = lm.config.routing_temperature
    lm.config.routing_temperature = temperature
    lm.temperature.data.fill_(temperature)
