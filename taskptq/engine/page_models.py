"""The models and test images that a page is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from taskptq.engine.checkpoint_file import load_float_weights, read_checkpoint
from taskptq.engine.config_model import build_model, evaluation_source
from taskptq.engine.datasets import read_sample
from taskptq.engine.pipeline import prepare_in_place
from taskptq.engine.restore import (
    read_decisions,
    read_qconfig,
    restore_model,
)
from taskptq.export.checkpoint import QuantizedCheckpointError
from taskptq.export.quantized_file import QuantizedFile

__all__ = ['PageModels', 'class_names']


class PageModels:
    """Builds the models of a config.

    Args:
        config: Loaded config of the float model.
        float_path: Float checkpoint, or None.
        device: Where models run.
        trust: Whether to unpickle what is not plain.

    Raises:
        ValueError: If the float checkpoint cannot be read.
    """

    def __init__(
        self,
        config: Config,
        *,
        float_path: Path | None,
        device: str | torch.device,
        trust: bool,
    ) -> None:
        self.config = config
        self.device = device
        self.float_path = float_path
        self.weights = (
            None
            if float_path is None
            else read_checkpoint(float_path, trust_checkpoint=trust)
        )

    def quantized(self, file: QuantizedFile) -> nn.Module:
        """Return the model of a quantized file.

        Raises:
            QuantizedCheckpointError: If it is of another model.
        """
        model = build_model(self.config, device=self.device)
        try:
            restore_model(file.payload, model)
        except QuantizedCheckpointError as error:
            raise QuantizedCheckpointError(f'{file.path}: {error}') from error
        return model

    def float_model(self) -> nn.Module | None:
        """Return the float model, None without its weights.

        Raises:
            ValueError: If the weights do not fit the model.
        """
        if self.weights is None:
            return None
        model = build_model(self.config, device=self.device)
        load_float_weights(model, self.weights, path=self.float_path or '')
        return model

    def twin(self, file: QuantizedFile) -> nn.Module | None:
        """Return the float weights in the structure of a quantized file.

        Quantizers are off, so it computes what the float model does, in
        layers that have the names of the quantized ones. None without float
        weights.

        Raises:
            ValueError: If the float model cannot take this structure.
        """
        model = self.float_model()
        if model is None:
            return None
        if file.payload.get('structure', {}).get('rewrites'):
            raise ValueError('a rewrite changed which layers there are')
        prepare_in_place(
            model,
            read_qconfig(file.payload['recipe']),
            decisions=read_decisions(file.payload, model),
        )
        return model.to(self.device)

    def batches(self, count: int) -> list[Any]:
        """Return batches of one test image each, spaced evenly.

        Args:
            count: Images, at most.

        Raises:
            FileNotFoundError: If the test set is not there.
            ValueError: If it is empty, or the config has none.
        """
        source = evaluation_source(self.config)
        total = len(source.dataset)
        count = min(count, total)
        if not count:
            raise ValueError('the test set is empty')
        places = [(2 * i + 1) * total // (2 * count) for i in range(count)]
        samples = [read_sample(source.dataset, place) for place in places]
        return [source.collate([s]) for s in samples if s is not None]


def class_names(file: QuantizedFile) -> list[str]:
    """Return the names of the classes that a file records."""
    meta = file.payload['meta'].get('dataset_meta')
    found = meta.get('classes') if isinstance(meta, Mapping) else None
    is_list = isinstance(found, (list, tuple))
    return [str(name) for name in found] if is_list else []
