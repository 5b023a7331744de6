"""Methods for weights on a few levels, and those for equal steps."""

from taskptq.recipes import method_names
from taskptq.recipes.folders import read_method


def has_levels(method: str) -> bool:
    """Whether a method of taskptq puts weights on a few levels."""
    settings = read_method(method, scope='taskptq')
    weight = settings.get('qconfig', {}).get('weight')
    return isinstance(weight, dict) and weight.get('type') == 'LevelQuantizer'


LEVEL_METHODS = [name for name in method_names() if has_levels(name)]
STEP_METHODS = [name for name in method_names() if not has_levels(name)]
