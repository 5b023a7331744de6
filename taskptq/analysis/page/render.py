"""Turn a page's content into one HTML file.

Everything is inside the file: styles, script, plots and pictures; its content
security policy forbids requests. jinja2 escapes all text, since names of
layers, classes and files come from strangers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskptq.analysis.page.metrics import main_metric
from taskptq.analysis.page.pictures import MARKS
from taskptq.analysis.page.plots import plot_noise, plot_tensor
from taskptq.analysis.page.side_files import kept_metrics

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ['MissingPackageError', 'check_packages', 'render', 'write']

TEMPLATES = Path(__file__).parent / 'templates'
# In report.json, pictures are left out and shapes are kept.
IMAGE_KEYS = ('photo', 'overlay')
# Error of a sum of shares.
ROUNDING = 1e-9
PACKAGES = ('jinja2', 'matplotlib', 'PIL')


class MissingPackageError(ImportError):
    """A package that draws the page is not installed."""


def check_packages() -> None:
    """Fail early if a package is missing.

    Raises:
        MissingPackageError: Naming it and what to install.
    """
    from importlib.util import find_spec

    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f'the page needs {" and ".join(missing)}, which is not '
            "installed: pip install 'taskptq[report]'"
        )


def write(content: Mapping[str, Any], out: Path) -> Path:
    """Write a page, and its content as JSON with the same stem.

    Args:
        content: See ``content.page_content``.
        out: HTML file; its folder is made.

    Returns:
        The JSON file.
    """
    html = render(content)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding='utf-8')
    side = out.with_suffix('.json')
    full = kept_metrics(side) | {k: v for k, v in content.items() if v}
    text = json.dumps(_without_images(full), indent=1, allow_nan=False)
    side.write_text(text + '\n', encoding='utf-8')
    return side


def render(content: Mapping[str, Any]) -> str:
    """Return a page as HTML.

    Args:
        content: See ``content.page_content``.
    """
    plots = [
        {
            'noise': plot_noise(entry['noise']['layers'])
            if entry.get('noise')
            else '',
            'tensors': [
                plot_tensor(shape) for shape in entry.get('tensors') or ()
            ],
        }
        for entry in content['files']
    ]
    template = _environment().get_template('page.html')
    return template.render(page=content, plots=plots, marks=MARKS)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        'bytes': _bytes,
        'db': _db,
        'number': _number,
        'percent': _percent,
        'plain': _plain_json,
        'seconds': _seconds,
        'short': _short,
    }
    environment.globals['main_metric'] = main_metric
    return environment


def _bytes(value: float | None) -> str:
    """Return a size.

    >>> _bytes(1_330_000), _bytes(4200), _bytes(None)
    ('1.27 MiB', '4.1 KiB', '-')
    """
    if value is None:
        return '-'
    if value >= 2**20:
        return f'{value / 2**20:.2f} MiB'
    return f'{value / 2**10:.1f} KiB'


def _percent(value: float | None) -> str:
    """Return a share; it reads 100 % only where it is all.

    >>> _percent(0.99999), _percent(1), _percent(None)
    ('99.9 %', '100 %', '-')
    """
    if value is None:
        return '-'
    if abs(value - 1) < ROUNDING:
        return '100 %'
    # As products_report.percent, of shares that are sums of floats.
    return '99.9 %' if 0.9995 <= value < 1 else f'{100 * value:.1f} %'


def _number(value: float | None) -> str:
    """Return a metric with four digits.

    >>> _number(0.2814), _number(65.2), _number(None)
    ('0.2814', '65.20', '-')
    """
    if value is None:
        return '-'
    digits = 4 if abs(value) < 1 else 3 if abs(value) < 10 else 2
    return f'{value:.{digits}f}'


def _db(value: float | None) -> str:
    return '-' if value is None else f'{value:.1f}'


def _seconds(value: float | None) -> str:
    return '-' if value is None else f'{value:.1f} s'


def _short(text: Any, length: int = 60) -> str:
    """Keep the end of a long name, which tells layers apart."""
    text = str(text)
    return text if len(text) <= length else f'…{text[1 - length :]}'


def _plain_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _without_images(value: Any) -> Any:
    """Copy plain types for JSON: no pictures, nothing that isn't finite."""
    if isinstance(value, Mapping):
        return {
            str(key): _without_images(item)
            for key, item in value.items()
            if key not in IMAGE_KEYS
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_images(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
