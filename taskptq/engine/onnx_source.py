"""The checkpoint that an export reads, quantized or float."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from taskptq.engine.checkpoint_file import (
    load_float_weights,
    read_checkpoint,
)
from taskptq.engine.restore import restore_model
from taskptq.export.runtime import is_onnx_path
from taskptq.export.schema import is_quantized

__all__ = ['FLOAT', 'OnnxSource']

# What metadata call the recipe of a float model.
FLOAT = 'float'


@dataclass(frozen=True, kw_only=True)
class OnnxSource:
    """A checkpoint to export.

    Args:
        path: The file.
        content: Its content, checked.
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(
        cls, path: Path, *, float_model: bool, trust_checkpoint: bool = False
    ) -> OnnxSource:
        """Read a checkpoint of the kind that is asked for.

        Raises:
            ValueError: If it is of the other kind; see also
                ``read_checkpoint``.
        """
        if is_onnx_path(path):
            raise ValueError(f'{path} is an exported file already')
        content = read_checkpoint(path, trust_checkpoint=trust_checkpoint)
        if is_quantized(content) and float_model:
            raise ValueError(
                f'{path} is quantized: export it without --float, or give '
                'the float checkpoint'
            )
        if not is_quantized(content) and not float_model:
            raise ValueError(
                f'{path} is a float checkpoint: quantize it first (taskptq '
                'quantize), or export the float model with --float'
            )
        return cls(path=path, content=content)

    def load_into(self, model: nn.Module) -> None:
        """Give a built model the file's structure and weights."""
        if is_quantized(self.content):
            restore_model(self.content, model)
        else:
            load_float_weights(model, self.content, path=self.path)

    def facts(self) -> dict[str, Any]:
        """Return recipe and digest, as the metadata of an export has them."""
        if is_quantized(self.content):
            meta = self.content['meta']
            return {
                'recipe': meta.get('recipe'),
                'digest': str(self.content['digest']),
            }
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {'recipe': FLOAT, 'digest': digest}
