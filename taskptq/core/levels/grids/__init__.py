"""Every kind of grid: each file of this folder has one."""

import importlib
import pkgutil

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_found.name}')
