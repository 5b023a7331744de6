"""Recipes for lane detectors, as method files of ``taskptq.recipes``."""
