"""Recipes for PromptedSAM, as method files of ``taskptq.recipes``."""
