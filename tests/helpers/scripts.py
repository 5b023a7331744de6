"""Scripts of projects as modules, under names that no other script has."""

import importlib.util
import sys
from pathlib import Path

PROJECTS = Path(__file__).resolve().parents[2] / 'projects'


def load_script(project, name):
    """Import projects/<project>/<name>.py."""
    full = f'{project}_{name}'
    path = PROJECTS / project / f'{name}.py'
    spec = importlib.util.spec_from_file_location(full, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[full] = module
    spec.loader.exec_module(module)
    return module
