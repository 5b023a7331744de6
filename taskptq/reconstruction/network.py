"""Network scope: train all layers at once on the adapter's named heads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.batches import (
    BatchParts,
    batch_length,
    batch_metas,
)
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import dropping, float_only, quantizing
from taskptq.core.distributed import mean_over_ranks
from taskptq.modules.base import quant_modules
from taskptq.prepare.blocks import Unit
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.reconstruction.capture.cache import (
    ActivationCache,
    cache_of,
    stored_bytes,
)
from taskptq.reconstruction.capture.disk import Estimate
from taskptq.reconstruction.capture.nesting import flatten, unflatten
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.image_variety import (
    channels_last,
    kept_in_memory,
    vary_images,
)
from taskptq.reconstruction.losses import (
    NetworkProbe,
    ReconContext,
    ReconLoss,
    adapter_of,
)
from taskptq.reconstruction.progress import RunProgress
from taskptq.reconstruction.rollback import Snapshot, keep_better
from taskptq.reconstruction.rounding.learned import (
    Minibatch,
    UnitResult,
    train_unit,
)

logger = logging.getLogger('taskptq')

# What keeps the outputs of a model of any class from being trained on.
NOT_TRAINABLE = (
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class NetworkData:
    """Named float outputs of all batches; a minibatch is one batch.

    Args:
        model: Swapped and calibrated model.
        batches: Calibration batches (this rank's share), or parts of them.
        adapter: The model's adapter. If it has ``forward_like``, with the
            arguments of ``forward_heads`` and the float outputs ``heads``,
            the quantized model runs through that, so that outputs per
            instance are those of the float model's instances. If it has
            ``trunk(model, batch)`` -> plain inputs and
            ``forward_from(model, inputs, heads=...)``, see
            :meth:`keep_trunks`.
        variety: Strength of :func:`vary_images` on each minibatch, whose
            float outputs are then computed anew.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        adapter: Any,
        *,
        variety: float = 0.0,
    ) -> None:
        self.model = model
        self.variety = variety
        self.batches = batches
        self.adapter = adapter
        self.targets: list[dict[str, Tensor]] = []
        self.metas: list[list[Mapping[str, Any]]] = []
        self.lengths: list[int] = []
        self.cache: ActivationCache | None = None
        self.trunks: list[tuple[int, Any]] = []  # leaves, skeleton
        with calibration_mode(model), float_only(model):
            for batch in batches:
                heads = adapter.forward_heads(model, batch)
                self.targets.append({k: v.detach() for k, v in heads.items()})
                self.lengths.append(batch_length(batch))
                self.metas.append(batch_metas(batch))

    def draw(self) -> Minibatch:
        """Return a random batch."""
        number = int(torch.randint(len(self.batches), ()))
        first = sum(self.lengths[:number])
        images = tuple(range(first, first + self.lengths[number]))
        if not self.variety:
            return Minibatch(
                run=lambda: self.run(number),
                target=self.targets[number],
                image_ids=images,
            )
        batch = vary_images(self.batches[number], strength=self.variety)
        with calibration_mode(self.model), float_only(self.model):
            target = dict(self.adapter.forward_heads(self.model, batch))
        return Minibatch(
            run=lambda: self._run_like(batch, target),
            target=target,
            image_ids=images,
        )

    def run(self, number: int) -> dict[str, Tensor]:
        """Run the model on one batch with its current switches."""
        target = self.targets[number]
        if self.trunks:
            trunk = self._trunk(number)
            return dict(
                self.adapter.forward_from(self.model, trunk, heads=target)
            )
        return self._run_like(self.batches[number], target)

    def _run_like(
        self, batch: Any, target: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        forward_like = getattr(self.adapter, 'forward_like', None)
        if forward_like is None:
            heads = self.adapter.forward_heads(self.model, batch)
        else:
            heads = forward_like(self.model, batch, heads=target)
        return dict(heads)

    def keep_trunks(
        self, trained: frozenset[str], *, cache: ActivationCache
    ) -> bool:
        """Run the part before all trained layers once, not at each step.

        It runs quantized and without drop, since nothing in it is trained.
        Does nothing if the adapter cannot split the model, or if a trained
        layer lies before the split.

        Args:
            trained: Names of the trained layers.
            cache: Stores the inputs of the rest of the model.

        Returns:
            Whether these inputs are kept.
        """
        trunk = getattr(self.adapter, 'trunk', None)
        if trunk is None or self.variety:
            return False
        met: list[str] = []
        trunks = []
        with ExitStack() as stack:
            for context in (
                calibration_mode(self.model),
                quantizing(self.model),
                dropping(self.model, drop_prob=0.0),
            ):
                stack.enter_context(context)
            for name, module in quant_modules(self.model):
                if name in trained:
                    handle = module.register_forward_pre_hook(
                        lambda *_, name=name: met.append(name)
                    )
                    stack.callback(handle.remove)
            for number, batch in enumerate(self.batches):
                leaves, skeleton = flatten(trunk(self.model, batch))
                if met:
                    return False
                if number == 0:
                    _check_trunks(leaves, len(self.batches), cache)
                for index, leaf in enumerate(leaves):
                    cache.put((number, index), leaf)
                trunks.append((len(leaves), skeleton))
        self.cache, self.trunks = cache, trunks
        return True

    def _trunk(self, number: int) -> Any:
        """Return the kept inputs of the rest of the model for a batch."""
        assert self.cache is not None
        count, skeleton = self.trunks[number]
        leaves = [
            self.cache.get((number, index), plain=True)
            for index in range(count)
        ]
        return unflatten(leaves, skeleton)

    def run_quantized(self, number: int) -> dict[str, Tensor]:
        """Run the current quantized model, without drop or gradient."""
        with (
            calibration_mode(self.model),
            quantizing(self.model),
            dropping(self.model, drop_prob=0.0),
        ):
            return self.run(number)

    def set_loss(self, loss: ReconLoss, *, num_steps: int) -> float:
        """Return the mean loss of all images.

        The loss is called without gradient and at step 0, so that losses
        that count or follow steps are unaffected.
        """
        values: list[Tensor] = []
        for number, target in enumerate(self.targets):
            found = self.run_quantized(number)
            first = sum(self.lengths[:number])
            context = ReconContext(
                unit='',
                step=0,
                num_steps=num_steps,
                image_ids=tuple(range(first, first + self.lengths[number])),
                heads_float=target,
                heads_quant=found,
                adapter=self.adapter,
            )
            with torch.no_grad():
                value = loss(found, target, context)
            values.append(value * self.lengths[number])
        mean = torch.stack(values).sum() / sum(self.lengths)
        return float(mean_over_ranks(mean))

    def probe(self) -> NetworkProbe:
        """Return the probe for the loss."""
        return NetworkProbe(
            heads_float=self.targets,
            metas=self.metas,
            run=self.run_quantized,
            adapter=self.adapter,
            batches=() if self.variety else self.batches,
        )


def train_network(
    model: nn.Module,
    batches: Sequence[Any],
    config: ReconstructionConfig,
    *,
    loss: ReconLoss,
    adapter: Any,
    cache_dir: Path | None = None,
    progress: bool = True,
    on_trained: Callable[[Unit], None] | None = None,
) -> UnitResult:
    """Train all layers at once on the adapter's heads.

    Args:
        model: Swapped and calibrated model; finished roundings are trained
            further.
        batches: Calibration batches (this rank's share).
        config: Settings.
        loss: Reconstruction loss.
        adapter: The model's adapter.
        cache_dir: Folder for spilled activations; None is the settings'.
        progress: Show a live display if there is a terminal.
        on_trained: Called with the unit while its roundings are soft.

    Raises:
        ValueError: If the rounding cannot be learned, a pattern of
            ``network_train`` matches nothing, or the activations don't fit
            on the disk.
    """
    if config.rounding == 'gptq':
        raise ValueError(
            "rounding='gptq' solves layer by layer: choose scope='block' "
            'without network_steps'
        )
    start = time.perf_counter()
    adapter = adapter_of(loss, adapter)
    trained = trained_layers(model, config.network_train)
    if config.network_batch_size is not None:
        batches = BatchParts(batches, config.network_batch_size)
    if config.vary_images:
        batches = kept_in_memory(batches, max_bytes=config.cache_bytes)
    data = NetworkData(model, batches, adapter, variety=config.vary_images)
    cache = cache_of(config, directory=cache_dir)
    try:
        if trained is not None and data.keep_trunks(trained, cache=cache):
            logger.info(
                'network_train: the part before the trained layers runs once'
            )
        fast = config.latent_weights or config.channels_last
        with channels_last(model, enabled=fast):
            result = _train(
                Unit('', model, trained),
                data,
                config,
                loss,
                progress,
                on_trained,
            )
    finally:
        cache.close()
    result.seconds = time.perf_counter() - start
    return result


@contextmanager
def optional_steps(model: nn.Module, *, optional: bool) -> Iterator[None]:
    """Go on with the model as it was if steps on the network are impossible.

    Args:
        model: Its units are rounded.
        optional: ``reconstruction.network_optional``; without it, errors
            pass.
    """
    before = Snapshot(Unit('', model)) if optional else None
    try:
        yield
    except NOT_TRAINABLE as error:
        if before is None:
            raise
        before.restore()
        logger.warning(
            'The steps on the network are left out: %s',
            ' '.join(str(error).split()) or type(error).__name__,
        )


def _check_trunks(
    leaves: Sequence[Tensor], num_batches: int, cache: ActivationCache
) -> None:
    """Refuse more activations than the disk holds, from the first batch."""
    total = num_batches * sum(stored_bytes(leaf) for leaf in leaves)
    memory = min(total, cache.max_bytes)
    cache.reserve(Estimate(total=total, memory=memory, disk=total - memory))


def _train(
    unit: Unit,
    data: NetworkData,
    config: ReconstructionConfig,
    loss: ReconLoss,
    progress: bool,
    on_trained: Callable[[Unit], None] | None,
) -> UnitResult:
    begin = getattr(loss, 'begin', None)
    if begin is not None:
        begin(data.probe())
    before = Snapshot(unit) if config.keep_better else None
    with RunProgress(1, config.steps, enabled=progress) as display:
        display.start_unit(0, 'network')
        result = train_unit(
            unit,
            data.draw,
            config,
            loss=loss,
            adapter=data.adapter,
            on_step=display.step,
            on_trained=on_trained,
        )
    if before is not None and result.steps:
        keep_better(
            unit,
            result,
            before=before,
            measure=lambda: data.set_loss(loss, num_steps=config.steps),
        )
    return result


def trained_layers(
    model: nn.Module, patterns: Sequence[str]
) -> frozenset[str] | None:
    """Return the names of the layers that match, None for all.

    Args:
        model: Swapped model.
        patterns: ``reconstruction.network_train``.

    Raises:
        ValueError: If a pattern matches no layer.
    """
    if not patterns:
        return None
    names = [name for name, _ in quant_modules(model)]
    check_all_used(patterns, names, argument='reconstruction.network_train')
    return frozenset(
        name
        for name in names
        if any(matches(name, pattern) for pattern in patterns)
    )
