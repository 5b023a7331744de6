"""Grids of a few learned levels per channel, for weights below 3 bits."""

from taskptq.core.levels.levels import LEVELS, Levels
from taskptq.core.levels.quantizer import LevelQuantizer

__all__ = ['LEVELS', 'LevelQuantizer', 'Levels']
