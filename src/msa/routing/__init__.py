"""Stage 2 over a durable memory: a bank as the network sees it."""

from msa.routing.bank_view import BankView, Library
from msa.routing.tiers import Tiers

__all__ = ["BankView", "Library", "Tiers"]
