"""Distributions of SAM's keys before and after the rewrites."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskptq.analysis.distribution import key_distributions
from taskptq.analysis.plots import plot_key_histograms
from taskptq.engine.pipeline import apply_rewrites, run_batch
from taskptq.methods.ptq4sam.bimodal_integration import TOKEN_TO_IMAGE
from taskptq.version import __version__

from .experiment import Experiment, current_commit

__all__ = ['compact_json', 'draw_keys', 'measure_keys', 'write_keys']

NATURAL = 'natural'
BIMODAL = 'bimodal (KeyShift)'
# Stage -> row whose rewrites turn the bimodal model into it.
REWRITTEN = {
    'after BIG': 'w4a4_ptq4sam-s',
    'after centering': 'w4a4_centering-s',
}
PREFIX = 'sam.mask_decoder.transformer.'

Stage = dict[str, dict[str, Any]]


def measure_keys(
    bimodal: Experiment, *, num_images: int, seed: int = 0, device: str = 'cpu'
) -> dict[str, Any]:
    """Describe the keys of the natural and of the bimodal model.

    The images are the first calibration images of the table's rows with the
    same seed, prompted by the detector. The distribution of an attention is
    that of the first batch, on which bimodal integration decides.

    Args:
        bimodal: Table whose rewrites make the keys bimodal.
        num_images: Number of calibration images.
        seed: Seed for choosing the images.
        device: Device of the model.

    Returns:
        ``stages``: title -> result of ``key_distributions``, for all
        attentions of the natural model and the token-to-image attentions of
        the others. ``rewrites``: the configs of each stage.
    """
    model = bimodal.float_model(device)
    images = replace(bimodal.images(seed), num_images=num_images)
    batches = list(bimodal.batches(images))
    stages = {NATURAL: describe(model, batches, patterns=['sam.*'])}
    rewrites: dict[str, list[Any]] = {NATURAL: []}
    recipes = {BIMODAL: list(bimodal.rewrites)} | {
        name: [*bimodal.rewrites, *own_rewrites(bimodal, row)]
        for name, row in REWRITTEN.items()
    }
    for name, configs in recipes.items():
        changed = copy.deepcopy(model)
        apply_rewrites(changed, Copies(batches), configs)
        stages[name] = describe(changed, batches, patterns=TOKEN_TO_IMAGE)
        rewrites[name] = configs
    return {'stages': stages, 'rewrites': rewrites}


class Copies(Sequence[Any]):
    """Batches that are copied for every reader, since models modify them."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        """Return a copy of a batch, or of a slice of them."""
        return copy.deepcopy(self._batches[index])


def own_rewrites(experiment: Experiment, row: str) -> list[Any]:
    """Return the rewrites of a row's recipe, plain."""
    return list(experiment.settings(row)['rewrites'])


def describe(
    model: nn.Module, batches: Sequence[Any], *, patterns: Sequence[str]
) -> Stage:
    """Describe the keys of some attentions."""
    return key_distributions(
        model, Copies(batches), forward=run_batch, patterns=patterns
    )


def draw_keys(stages: Mapping[str, Stage], out: Path) -> None:
    """Draw the attentions from tokens to the image, a column per stage."""
    names = list(stages[BIMODAL])
    short = {
        title: {name.removeprefix(PREFIX): found[name] for name in names}
        for title, found in stages.items()
    }
    plot_key_histograms(short, out)


def write_keys(
    found: Mapping[str, Any],
    out: Path,
    *,
    experiment: Experiment,
    command: str,
    num_images: int,
    seed: int,
) -> None:
    """Write the measurement, with everything needed to repeat it.

    Args:
        found: Result of :func:`measure_keys`.
        out: JSON file.
        experiment: The table.
        command: Command line.
        num_images: Number of calibration images.
        seed: Seed for choosing them.
    """
    content = {
        'model': experiment.model.removesuffix('-bimodal'),
        'dataset': experiment.dataset,
        'checkpoint': experiment.checkpoint,
        'command': command,
        'commit': current_commit(),
        'seeds': {'images': seed, 'KeyShift': shift_seed(experiment)},
        'num_images': num_images,
        'environment': {
            'taskptq': __version__,
            'torch': str(torch.__version__),
        },
        'rewrites': found['rewrites'],
        'stages': {
            title: {name: summary(keys) for name, keys in stage.items()}
            for title, stage in found['stages'].items()
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(compact_json(content) + '\n', encoding='utf-8')


def shift_seed(experiment: Experiment) -> int:
    """Return the seed of the table's KeyShift; 0 is its default."""
    for rewrite in experiment.rewrites:
        if rewrite['type'].endswith('KeyShift'):
            return int(rewrite.get('seed', 0))
    raise ValueError(
        f'{experiment.model} has no KeyShift: give the table of '
        'the bimodal model'
    )


def summary(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one attention; density sums to 1 / bin width."""
    positions = keys['peaks']['positions']
    return {
        'num_peaks': len(positions),
        'peaks': positions,
        'range': keys['range'],
        'center_std': keys['center_std'],
        'mean_width': keys['mean_width'],
        'edges': keys['histogram']['edges'],
        'density': keys['histogram']['density'],
    }


def compact_json(content: Any) -> str:
    """Write floats with four digits, and lists of numbers on one line.

    >>> print(compact_json({'a': [1.00004, 2]}))
    {
     "a": [1.0, 2]
    }
    """
    text = json.dumps(rounded(content), indent=1, allow_nan=False)
    return re.sub(
        r'\[\s+([^\[\]{}"]*?)\s+\]',
        lambda match: f'[{" ".join(match[1].split())}]',
        text,
    )


def rounded(content: Any) -> Any:
    """Round all floats to four significant digits."""
    if isinstance(content, float):
        return float(f'{content:.4g}')
    if isinstance(content, Mapping):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [rounded(value) for value in content]
    return content
