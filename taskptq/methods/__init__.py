"""Layer 4: one folder per paper, discovered automatically."""

import importlib
import pkgutil

# Importing a folder registers its parts.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
