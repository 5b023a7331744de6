"""Whether an exported file follows the sizes that it leaves free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from taskptq.engine.raw_outputs import BATCH, HEIGHT, WIDTH, Part, stem_of
from taskptq.export.errors import OnnxFileError
from taskptq.export.runtime import Session, read_onnx

__all__ = ['FrozenSizeError', 'check_free_sizes', 'distances']

# Noise over signal, in power, that rounding may cause in any network.
MOST_NOISE = 0.1


class FrozenSizeError(OnnxFileError):
    """A size was frozen while a network was traced.

    Args:
        message: One sentence.
        label: Name of the size.
    """

    def __init__(self, message: str, *, label: str) -> None:
        super().__init__(message)
        self.label = label

    @property
    def is_batch(self) -> bool:
        """Whether it is the number of images."""
        return stem_of(self.label) == BATCH


@torch.no_grad()
def check_free_sizes(part: Part, path: Path) -> None:
    """Run a file with each free size changed, as the network is run.

    Raises:
        FrozenSizeError: If a size was frozen while the network was traced;
            the file is removed.
    """
    session = Session(read_onnx(path))
    expected = part.network.named_outputs(*part.inputs)
    usual = distances(session(*part.inputs), expected)
    for label in sorted(set(_labels(part))):
        inputs = part.longer(label)
        expected = part.network.named_outputs(*inputs)
        problem = ''
        try:
            found = session(*inputs)
        except OnnxFileError as error:
            problem = str(error)
        else:
            apart = distances(found, expected)
            wrong = [
                name
                for name, distance in apart.items()
                if distance > max(MOST_NOISE, 2 * usual[name])
            ]
            if wrong:
                problem = f'{path}: {wrong[0]} differs from the network'
        if problem:
            path.unlink()
            raise FrozenSizeError(
                f'the {label} of {part.name} cannot be free, because its code '
                f'computes with it outside of the graph ({problem}): '
                f'{_way_out(label)}',
                label=label,
            )


def _way_out(label: str) -> str:
    if label in (HEIGHT, WIDTH):
        return 'export with a fixed --size'
    return 'take sizes from tensor.shape in the model, not from len()'


def _labels(part: Part) -> Iterator[str]:
    for name in part.input_names:
        yield from part.dynamic_axes.get(name, {}).values()


def distances(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return how far outputs are apart: noise over signal, in power.

    Ties round differently in two runtimes, errors of quantized networks
    cascade, and outputs that depend on a choice (as of the best places of a
    heat map) may be of another one. This is so at the traced size as well; a
    frozen size gives something else altogether.

    Args:
        found: Outputs of the file.
        expected: Outputs of the network, by the same names.

    Returns:
        Infinite where shapes differ; 0 for integers of the same shape.
    """
    apart = {}
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            apart[name] = math.inf
        elif not tensor.is_floating_point():
            apart[name] = 0.0
        else:
            noise = float((found[name] - tensor).square().mean())
            signal = float(tensor.square().mean())
            apart[name] = max(0.0, noise - 1e-9) / max(signal, 1e-12)
    return apart
