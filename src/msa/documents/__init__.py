"""Texts before they meet the network: documents, readers, splitting, and the transcript's strings."""

from msa.documents.protocol import EncodedText, Protocol, ProtocolStrings
from msa.documents.types import Document

__all__ = ["Document", "EncodedText", "Protocol", "ProtocolStrings"]
