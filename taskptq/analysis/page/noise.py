"""Signal to noise of every layer: alone, and inside the quantized model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import Forward, calibration_mode
from taskptq.core.progress import Progress
from taskptq.hosts.class_lookup import layer_patterns, replayed_input
from taskptq.hosts.registry import OUTPUT_LAYERS
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.modules.conv import is_depthwise
from taskptq.prepare.swap import is_listed

__all__ = [
    'Energy',
    'LayerNoise',
    'by_group',
    'kind_of',
    'measure_noise',
    'summarize',
]

# Values kept of one output of the float model; more are sampled evenly.
MAX_KEPT = 1 << 14
# No noise at all; JSON has no infinity.
MOST_DB = 150.0


@dataclass
class Energy:
    """Sums of squares of a signal and of its noise."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, clean: Tensor, noisy: Tensor) -> None:
        """Add a tensor and its quantized version, of the same shape."""
        self.signal += float(clean.double().square().sum())
        self.noise += float((clean - noisy).double().square().sum())

    @property
    def db(self) -> float | None:
        """10 log10(signal / noise); None without a signal."""
        if not self.signal or not math.isfinite(self.signal + self.noise):
            return None
        if not self.noise:
            return MOST_DB
        return min(MOST_DB, 10 * math.log10(self.signal / self.noise))


@dataclass(kw_only=True)
class LayerNoise:
    """Signal to noise of one layer, in dB.

    Args:
        name: Qualified name.
        kind: See :func:`kind_of`.
        part: Part of the model it belongs to: the name's first word.
        weight_db: Of its weights; None if they stay float.
        own_db: Of its output if only this layer is quantized, on inputs of
            the float model; None if it was never called as a module.
        output_db: Of its output inside the quantized model, which has the
            noise of all layers before; None if the two models call it on
            other rows, such as their own proposals.
        is_output: Whether it is the last layer of a head.
    """

    name: str
    kind: str
    part: str
    is_output: bool = False
    weight_db: float | None = None
    own_db: float | None = None
    output_db: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


@dataclass
class _Record:
    own: Energy = field(default_factory=Energy)
    output: Energy = field(default_factory=Energy)
    kept: list[Tensor] = field(default_factory=list)
    calls: int = 0
    differs: bool = False


def kind_of(module: nn.Module) -> str:
    """Return what a layer is, in words.

    >>> kind_of(nn.Conv2d(3, 8, 1)), kind_of(nn.Linear(3, 8))
    ('1x1 convolution', 'linear')
    """
    kernel = getattr(module, 'kernel_size', None)
    if isinstance(kernel, tuple):
        if is_depthwise(module):
            return 'depthwise convolution'
        is_point = all(size == 1 for size in kernel)
        return '1x1 convolution' if is_point else 'convolution'
    return 'linear' if isinstance(module, nn.Linear) else 'attention'


def measure_noise(
    float_model: nn.Module,
    quant_model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Forward,
) -> list[LayerNoise]:
    """Measure every counterpart, in the order of the model's definition.

    Args:
        float_model: The float weights in the quantized model's structure:
            folded and swapped in the same way, quantizers off.
        quant_model: The quantized model.
        batches: Collated batches.
        forward: Runs a model on one batch.
    """
    pairs = dict(quant_modules(quant_model))
    records = {name: _Record() for name in pairs}
    shown = Progress('compare layers', total=len(batches))
    with (
        calibration_mode(float_model),
        calibration_mode(quant_model),
        shown,
    ):
        for batch in batches:
            with _hooked(float_model, records, _own_hook(pairs)):
                forward(float_model, batch)
            with (
                _hooked(quant_model, records, _output_hook),
                _unmatched_rows(quant_model, records),
            ):
                forward(quant_model, batch)
            for record in records.values():
                record.kept.clear()
                record.calls = 0
            shown.advance()
    clean = dict(quant_modules(float_model))
    last = _output_layers(quant_model)
    return [
        LayerNoise(
            name=name,
            kind=kind_of(module),
            part=name.partition('.')[0],
            is_output=name in last,
            weight_db=_weight_db(clean.get(name), module),
            own_db=records[name].own.db,
            output_db=(
                None if records[name].differs else records[name].output.db
            ),
        )
        for name, module in pairs.items()
    ]


def _output_layers(model: nn.Module) -> set[str]:
    """Names of the last layers of heads."""
    listed = layer_patterns(model, OUTPUT_LAYERS)
    return {
        name for name, _ in quant_modules(model) if is_listed(name, listed)
    }


def summarize(layers: Sequence[LayerNoise]) -> dict[str, Any]:
    """Return what the page shows of the layers, plain types.

    Returns:
        ``layers`` in the model's order, ``ordered`` by their own noise, and
        ``output_db``, the median of the last layers of heads inside the
        quantized model; None if there are none.
    """
    rows = [layer.to_dict() for layer in layers]
    outputs = [
        layer.output_db
        for layer in layers
        if layer.is_output and layer.output_db is not None
    ]
    return {
        'layers': rows,
        'ordered': sorted(
            rows,
            key=lambda row: (
                MOST_DB if row['own_db'] is None else row['own_db']
            ),
        ),
        'output_db': statistics.median(outputs) if outputs else None,
    }


def by_group(
    layers: Sequence[Mapping[str, Any]], *, key: str
) -> list[dict[str, Any]]:
    """Average over layers of one kind or part, the noisiest first.

    Args:
        layers: See ``LayerNoise.to_dict``.
        key: 'kind' or 'part'.

    Returns:
        For each group its ``name``, number of ``layers``, the mean of
        ``own_db`` and the least, and its ``worst`` layer.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        if layer['own_db'] is not None:
            groups.setdefault(layer[key], []).append(layer)
    rows = []
    for name, found in groups.items():
        worst = min(found, key=lambda layer: float(layer['own_db']))
        rows.append(
            {
                'name': name,
                'layers': len(found),
                'mean_db': sum(x['own_db'] for x in found) / len(found),
                'least_db': worst['own_db'],
                'worst': worst['name'],
            }
        )
    return sorted(rows, key=lambda row: float(row['least_db']))


Hook = Callable[[_Record, str, Any, Any, Any], None]


@contextmanager
def _hooked(
    model: nn.Module, records: Mapping[str, _Record], hook: Hook
) -> Iterator[None]:
    """Call ``hook(record, name, args, kwargs, output)`` after each layer."""
    with ExitStack() as stack:
        for name, module in quant_modules(model):
            if name not in records:
                continue

            def after(
                module: nn.Module,
                args: Any,
                kwargs: Any,
                output: Any,
                name: str = name,
            ) -> None:
                hook(records[name], name, args, kwargs, output)

            handle = module.register_forward_hook(after, with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def _unmatched_rows(
    model: nn.Module, records: Mapping[str, _Record]
) -> Iterator[None]:
    """Leave out layers behind a module that selects rows, such as boxes.

    Each model selects its own, so that rows of the two do not correspond.
    """
    selected: list[nn.Module] = []

    def leave_out(name: str) -> None:
        if selected:
            records[name].differs = True

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if replayed_input(module) is not None:
                handle = module.register_forward_pre_hook(
                    lambda module, args: selected.append(module)
                )
                stack.callback(handle.remove)
            elif name in records:
                handle = module.register_forward_pre_hook(
                    lambda module, args, name=name: leave_out(name)
                )
                stack.callback(handle.remove)
        yield


def _own_hook(pairs: Mapping[str, QuantModule]) -> Hook:
    """Compare a float layer's output with its counterpart's on its inputs."""

    def after(
        record: _Record, name: str, args: Any, kwargs: Any, output: Any
    ) -> None:
        clean = _first_tensor(output)
        noisy = _first_tensor(pairs[name](*args, **kwargs))
        if clean is None:
            return
        if noisy is not None and clean.shape == noisy.shape:
            record.own.add(clean, noisy)
        # A copy: the next module may work in place.
        record.kept.append(_sample(clean).clone())

    return after


def _output_hook(
    record: _Record, name: str, args: Any, kwargs: Any, output: Any
) -> None:
    """Compare an output of the quantized model with the float model's."""
    noisy = _first_tensor(output)
    index, record.calls = record.calls, record.calls + 1
    if noisy is None:
        return
    found = _sample(noisy)
    if index >= len(record.kept) or record.kept[index].shape != found.shape:
        record.differs = True
        return
    record.output.add(record.kept[index], found)


def _first_tensor(output: Any) -> Tensor | None:
    """Return the tensor of an output, or the first of several."""
    while isinstance(output, (list, tuple)) and output:
        output = output[0]
    is_signal = isinstance(output, Tensor) and output.is_floating_point()
    return output if is_signal and output.numel() else None


def _sample(x: Tensor) -> Tensor:
    step = max(1, x.numel() // MAX_KEPT)
    return x.reshape(-1)[::step]


@torch.no_grad()
def _weight_db(clean: QuantModule | None, module: QuantModule) -> float | None:
    """Compare the weights of a layer, all of them together."""
    energy = Energy()
    for parameter, slot in module.active_slots():
        weight = getattr(clean, parameter, None)
        if weight is None or getattr(module, slot) is None:
            continue
        noisy = getattr(module, parameter)
        if weight.shape == noisy.shape:
            energy.add(weight, noisy)
    return energy.db
