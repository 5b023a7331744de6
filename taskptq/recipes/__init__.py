"""Recipes by name: bits and a method, as in ``w4a8_gptq``.

A method is a file of plain settings in this folder, or in a folder that a
project registers; the bits come from the name.
"""

from taskptq.recipes.folders import KEYS, method_names, register_folder
from taskptq.recipes.merge import merge
from taskptq.recipes.names import RecipeName, parse, resolve

__all__ = [
    'KEYS',
    'RecipeName',
    'merge',
    'method_names',
    'parse',
    'register_folder',
    'resolve',
]
