"""Study of box grids for small objects under quantization."""

from small_objects.markers import update_grid_text
from taskptq.bench import markers

markers.register('small_objects', update_grid_text)
