"""From a plain backbone to a model with a memory."""

from msa.conversion.backbone import config_from_backbone, load_backbone
from msa.conversion.convert import convert

__all__ = ["config_from_backbone", "convert", "load_backbone"]
