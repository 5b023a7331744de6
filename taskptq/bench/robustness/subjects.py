"""The models that are compared: float, quantized files, exported files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from torch import nn

from taskptq.apis import load_quantized
from taskptq.bench.measurement import file_digest
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.config_model import build_model
from taskptq.engine.onnx_hook import install_onnx
from taskptq.export.checkpoint import is_quantized
from taskptq.export.runtime import is_onnx_path
from taskptq.robustness.names import Noise

__all__ = ['FLOAT', 'Subject', 'load_subjects', 'name_subjects']

FLOAT = 'float'
QUANTIZED = 'quantized'
EXPORTED = 'exported'
# Published files end with eight digits of their digest.
DIGEST = re.compile(r'-[0-9a-f]{8}$')


@dataclass(kw_only=True)
class Subject:
    """One model under test.

    Args:
        name: Column of the tables.
        kind: ``float``, ``quantized`` or ``exported``.
        file: Its file, as given.
        sha256: Digest of the file.
        model: Ready to evaluate.
    """

    name: str
    kind: str
    file: str
    sha256: str
    model: nn.Module

    def refusal(self, noise: Noise) -> str:
        """Return why a noise does not concern this model, '' if it may."""
        if self.kind == EXPORTED and noise.kind in ('ceil_mode', 'upsample'):
            return 'the graph of an exported file is fixed'
        if self.kind != FLOAT and noise.kind == 'precision':
            return f'this model is {self.kind}: that is its precision'
        return ''


def name_subjects(files: Sequence[str], *, model: str = '') -> list[str]:
    """Return a name for each file: its stem without words of the config.

    >>> files = ['a/net_w8a8_coco-1234abcd.pth', 'net_w8a8.onnx']
    >>> name_subjects(files, model='net_coco')
    ['w8a8', 'w8a8 onnx']

    Args:
        files: Paths; where stems are the same, they are the names.
        model: Stem of the config.
    """
    known = set(model.split('_'))
    stems = [DIGEST.sub('', Path(file).stem) for file in files]
    names = [
        '_'.join(word for word in stem.split('_') if word not in known) or stem
        for stem in stems
    ]
    names = [
        f'{name} onnx' if is_onnx_path(file) else name
        for name, file in zip(names, files, strict=True)
    ]
    if len(set(names)) < len(names):
        return [str(Path(file)) for file in files]
    return names


def load_subjects(
    config: Config,
    float_file: str,
    files: Sequence[str],
    *,
    model: nn.Module,
    device: str,
    trust_checkpoint: bool = False,
) -> list[Subject]:
    """Load the models.

    Args:
        config: Config of the float model.
        float_file: Float checkpoint.
        files: Quantized and exported files.
        model: Built float model, with any weights; the first subject's.
        device: Where the models run.
        trust_checkpoint: Unpickle a float checkpoint that is not plain.

    Raises:
        ValueError: If a file is of another model, or no quantized file.
    """
    names = name_subjects(files, model=Path(config.filename or '').stem)
    checkpoint = read_checkpoint(
        local_file(float_file), trust_checkpoint=trust_checkpoint
    )
    if is_quantized(checkpoint):
        raise ValueError(
            f'{float_file} is a quantized file: give the float checkpoint '
            'first, then the files to compare with it'
        )
    load_float_weights(model, checkpoint, path=float_file)
    found = [
        Subject(
            name=FLOAT,
            kind=FLOAT,
            file=float_file,
            sha256=file_digest(float_file),
            model=model.to(device).eval(),
        )
    ]
    found += [
        load_file(file, name=name, config=config, device=device)
        for name, file in zip(names, files, strict=True)
    ]
    return found


def load_file(file: str, *, name: str, config: Config, device: str) -> Subject:
    """Load a quantized or an exported file.

    Args:
        file: The file.
        name: Column of the tables.
        config: Config of the float model.
        device: Where the model runs.
    """
    path = str(local_file(file))
    exported = is_onnx_path(path)
    if exported:
        model = build_model(config, device=device)
        install_onnx(model, path, threads=1)
    else:
        model = load_quantized(config, path, device=device)
    return Subject(
        name=name,
        kind=EXPORTED if exported else QUANTIZED,
        file=file,
        sha256=file_digest(file),
        model=model.eval(),
    )
