"""Facts of a quantized file, read without running code from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskptq.export.checkpoint import QuantizedCheckpointError, is_quantized
from taskptq.export.container import expanded
from taskptq.export.errors import FileError, NotPlainFileError
from taskptq.export.packing import packed_length
from taskptq.export.reader import read_file
from taskptq.export.validate import check_structure
from taskptq.export.verification import verify
from taskptq.prepare.decisions import Decisions
from taskptq.prepare.products_report import ProductReport
from taskptq.prepare.report import SwapReport, SwapRow

__all__ = ['QuantizedFile', 'open_file']

FLOAT_BYTES = 4
# As taskptq.engine.checkpoint_file.TRAINING_KEY, which needs mmengine.
TRAINING_KEY = 'taskptq_qat'
OPERANDS = ('query_quantizer', 'key_quantizer', 'value_quantizer')


@dataclass(frozen=True, kw_only=True)
class QuantizedFile:
    """A quantized file whose structure was checked.

    Args:
        path: The file.
        payload: Its content.
        fault: Why the digest or the numbers are wrong; '' if they are right.
    """

    path: Path
    payload: Mapping[str, Any]
    fault: str = ''

    def facts(self) -> dict[str, Any]:
        """Return what ``taskptq info`` prints, plain; None is unknown."""
        meta, header = self.payload['meta'], self.payload['taskptq']
        packed = sum(_numel(e['shape']) for e in self._weights().values())
        rest = sum(tensor.numel() for tensor in self.payload['float'].values())
        products = self.products()
        return {
            'file': str(self.path),
            'model': meta.get('model'),
            'config': meta.get('config_name'),
            'num_classes': _length(meta.get('dataset_meta'), 'classes'),
            'version': header.get('version'),
            'schema': header['schema'],
            'recipe': meta.get('recipe'),
            'parts': _parts(self.payload['recipe']),
            'bits': self.bits(),
            'file_bytes': self.path.stat().st_size,
            'float_bytes': FLOAT_BYTES * (packed + rest),
            'num_weights': len(self._weights()),
            'packed_bytes': sum(
                packed_length(_numel(e['shape']), num_bits=e['num_bits'])
                for e in self._weights().values()
            ),
            'share_of_parameters': packed / max(1, packed + rest),
            'share_of_macs': None if products is None else products.share,
            'calibration': self.payload['recipe'].get('calibration'),
            'digest': self.payload['digest'],
            'verified': not self.fault,
            'fault': self.fault or None,
        }

    def bits(self) -> dict[str, dict[str, int]]:
        """Return point -> bits -> number of layers; edges are included."""
        found: dict[str, Counter[str]] = {}
        for row in self.rows().values():
            for point in ('weight', 'activation', 'attention', 'softmax'):
                bits = getattr(row, f'{point}_bits')
                if bits is not None:
                    found.setdefault(point, Counter())[str(bits)] += 1
        return {
            point: dict(counts.most_common())
            for point, counts in found.items()
        }

    def products(self) -> ProductReport | None:
        """Return which multiply-accumulates run quantized; None if unknown.

        Raises:
            QuantizedCheckpointError: If the file lists impossible products.
        """
        plain = self._structure().get('products')
        if plain is None:
            return None
        try:
            return ProductReport.from_dict(plain)
        except ValueError as error:
            raise QuantizedCheckpointError(f'{self.path}: {error}') from error

    def decisions(self) -> Decisions:
        """Return what preparation decided; nothing in files of schema 1.

        Raises:
            QuantizedCheckpointError: If the file lists impossible decisions.
        """
        plain = self._structure().get('decisions')
        if plain is None:
            return Decisions()
        try:
            return Decisions.from_dict(plain)
        except ValueError as error:
            raise QuantizedCheckpointError(f'{self.path}: {error}') from error

    def swap_report(self) -> SwapReport:
        """Return the fate of every layer that the file names."""
        products, decisions = self.products(), self.decisions()
        report = SwapReport(
            rows=list(self.rows().values()),
            folded=[norm for _, norm in decisions.folded],
            decisions=decisions,
        )
        if products is not None:
            report.add_products(products)
        return report

    def rows(self) -> dict[str, SwapRow]:
        """Return a row for each quantized layer: its name, class and bits."""
        bits: dict[str, dict[str, Any]] = {}
        for key, entry in self._weights().items():
            of_layer = bits.setdefault(key.rpartition('.')[0], {})
            known = of_layer.get('weight_bits', entry['num_bits'])
            of_layer['weight_bits'] = min(known, entry['num_bits'])
        for layer, point, num_bits in self._quantizers():
            of_layer = bits.setdefault(layer, {})
            of_layer[point] = min(of_layer.get(point, num_bits), num_bits)
        products = self.products()
        kinds = {
            product.module: product.type
            for product in (products.products if products else ())
        }
        return {
            layer: SwapRow(
                name=layer,
                type=kinds.get(layer, '-'),
                status='quantized',
                **of_layer,
            )
            for layer, of_layer in bits.items()
        }

    def _structure(self) -> Mapping[str, Any]:
        structure: Mapping[str, Any] = self.payload.get('structure', {})
        return structure

    def _weights(self) -> Mapping[str, Any]:
        weights: Mapping[str, Any] = self.payload['weights']
        return weights

    def _quantizers(self) -> Iterator[tuple[str, str, int]]:
        """Yield (layer, field of SwapRow, bits) of what isn't a weight."""
        for key, grid in self.payload['quantizers'].items():
            name, _, buffer = key.rpartition('.')
            layer, _, quantizer = name.rpartition('.')
            if buffer != 'grid' or grid.numel() != 2 or 'weight' in quantizer:
                continue
            point = 'activation_bits'
            if quantizer in OPERANDS:
                point = 'attention_bits'
            elif quantizer.startswith('softmax'):
                point = 'softmax_bits'
            low, high = (int(value) for value in grid)
            yield layer, point, (high - low).bit_length()


def open_file(path: str | Path) -> QuantizedFile:
    """Read a quantized file without running code from it.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        QuantizedCheckpointError: If it is not a quantized file, damaged, or of
            another structure than its schema says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no file {path}')
    try:
        payload = read_file(path)
    except NotPlainFileError as error:
        raise QuantizedCheckpointError(
            f'{path} is not a quantized file of taskptq: it {error}, which '
            'no quantized file does, and was not read'
        ) from error
    except FileError as error:
        raise QuantizedCheckpointError(f'{path} {error}') from error
    if not is_quantized(payload):
        raise QuantizedCheckpointError(
            f'{path} is not a quantized file of taskptq{_kind(payload)}'
        )
    try:
        payload = expanded(payload)
        check_structure(payload)
    except QuantizedCheckpointError as error:
        raise QuantizedCheckpointError(f'{path}: {error}') from error
    try:
        return QuantizedFile(path=path, payload=verify(payload))
    except QuantizedCheckpointError as error:
        return QuantizedFile(path=path, payload=payload, fault=str(error))


def _kind(payload: Any) -> str:
    """Describe a file of torch.save that is not a quantized one."""
    if not isinstance(payload, Mapping):
        return f': it holds a {type(payload).__name__}'
    if TRAINING_KEY in payload:
        return (
            ' but a checkpoint of a quantization-aware training: test it with '
            'its own config, which writes the quantized file'
        )
    return ' but a float checkpoint: quantize it first (taskptq quantize)'


def _parts(recipe: Mapping[str, Any]) -> list[str]:
    """Name the steps of a recipe besides calibration, in order."""
    rewrites = recipe.get('rewrites')
    parts = [
        str(part.get('type'))
        for part in (rewrites if isinstance(rewrites, list) else ())
        if isinstance(part, Mapping)
    ]
    settings, loss = recipe.get('reconstruction'), recipe.get('loss')
    if isinstance(settings, Mapping):
        kind = ', '.join(
            f'{key} {settings[key]}'
            for key in ('scope', 'rounding', 'drop_prob', 'network_steps')
            if settings.get(key)
        )
        parts.append(f'reconstruction ({kind})' if kind else 'reconstruction')
    if isinstance(loss, Mapping):
        parts.append(str(loss.get('type')))
    return parts


def _length(value: Any, key: str) -> int | None:
    """Return the length of a list in a dict, None if there is none."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return len(found) if isinstance(found, list) else None


def _numel(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
