"""Selective Focus: network-wise reconstruction focused on decoding.

Fan et al., 'Selective Focus: Investigating Semantics Sensitivity in
Post-training Quantization for Lane Detection', AAAI 2024. We could read only
its ideas: the foreground of a head matters most (Semantic Guided Focus),
heads matter unequally (Sensitivity Aware Selection, refined at run time), and
the network is reconstructed as a whole. The formulas are our reconstruction;
every choice in them is an argument.

``loss = sum over kept heads of w_i L_i``, with ``L_i`` from
:mod:`taskptq.methods.selective_focus.semantic_focus` and ``w_i`` from
:mod:`taskptq.methods.selective_focus.head_selection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskptq.core.distributed import mean_over_ranks
from taskptq.core.settings import (
    Choice,
    Flag,
    Items,
    Number,
    Whole,
    refuse,
)
from taskptq.methods.selective_focus.decoded_distance import build_distance
from taskptq.methods.selective_focus.head_selection import (
    HeadSelection,
    MovingAverage,
)
from taskptq.methods.selective_focus.head_sensitivity import (
    MonotoneCurve,
    build_curves,
)
from taskptq.methods.selective_focus.head_swaps import FORMS, HeadSwaps
from taskptq.methods.selective_focus.semantic_focus import (
    KINDS,
    Heads,
    SemanticFocus,
)
from taskptq.reconstruction.losses import NetworkProbe, Outputs, ReconContext
from taskptq.registry import RECON_LOSSES

__all__ = ['NetworkUniform', 'SelectiveFocusLoss']

STRENGTHS = Items(
    of=Number(above=0, high=100), what='a list of numbers', least=1, most=100
)


@dataclass
class _Network:
    """What a loss has measured on its network, since ``begin``."""

    probe: NetworkProbe | None = None
    variances: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    average: MovingAverage = field(default_factory=lambda: MovingAverage(0))
    swaps: HeadSwaps | None = None
    curves: dict[str, MonotoneCurve] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    # First image of a batch -> its number, and weights by decoded lanes.
    numbers: dict[int, int] = field(default_factory=dict)
    near: dict[int, dict[str, Tensor]] = field(default_factory=dict)


@RECON_LOSSES.register_module()
class SelectiveFocusLoss:
    """Error of named heads, focused and weighted by their sensitivity.

    Use it with ``reconstruction.scope='network'`` or ``network_steps``.

    Args:
        focus: 'soft', 'hard' or 'decoded' foreground of the float model, or
            None; see ``SemanticFocus``.
        focus_threshold: Confidence of a foreground location, for 'hard'.
        eps_bg: Weight of the background by kind of head; None is 0.05 for
            confidence heads and 0 for regression heads.
        head_kinds: Name pattern -> 'confidence' or 'regression'; precedes
            the adapter's own.
        focus_kinds: Kinds of heads to focus, both by default.
        normalize: Divide by the float variance of the 'head', of each
            'channel', or by nothing (None).
        var_eps: Added to each variance.
        selection: 'threshold', 'topk', or None for equal weights.
        rho: 'threshold' keeps heads with at least this share of the highest
            sensitivity.
        top_k: Number of heads that 'topk' keeps.
        floor: Share of the weight spread evenly over all heads.
        sensitivity: 'swap_in' or 'leave_one_out', see ``HeadSwaps``.
        num_images: Least number of images that a measurement decodes, in
            whole batches.
        strengths: Parts of its error at which a head's curve is measured.
        ema: Weight of the earlier sensitivities at each update, [0, 1).
        update_interval: Steps between updates from the curves.
        refresh_interval: Steps between exact measurements; 0 measures only
            at the start.
        distance: Distance of decoded predictions; see ``build_distance``.

    Raises:
        ValueError: If a value is invalid.
    """

    by_query = False

    def __init__(
        self,
        *,
        focus: str | None = 'soft',
        focus_threshold: float = 0.3,
        eps_bg: Mapping[str, float] | None = None,
        head_kinds: Mapping[str, str] | None = None,
        focus_kinds: Sequence[str] = KINDS,
        normalize: str | None = 'head',
        var_eps: float = 1e-6,
        selection: str | None = 'threshold',
        rho: float = 0.05,
        top_k: int = 2,
        floor: float = 0.0,
        sensitivity: str = 'swap_in',
        num_images: int = 8,
        strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        ema: float = 0.9,
        update_interval: int = 20,
        refresh_interval: int = 200,
        distance: Any = 'lane_distortion',
    ) -> None:
        self.focus = SemanticFocus(
            focus=focus,
            threshold=focus_threshold,
            eps_bg={} if eps_bg is None else eps_bg,
            head_kinds={} if head_kinds is None else head_kinds,
            focus_kinds=focus_kinds,
            normalize=normalize,
            var_eps=var_eps,
        )
        self.selection = HeadSelection(
            selection=selection, rho=rho, top_k=top_k, floor=floor
        )
        self.sensitivity = sensitivity
        self.num_images = num_images
        self.strengths: tuple[float, ...] = STRENGTHS.read(
            strengths, name='strengths'
        )
        self.ema = ema
        self.update_interval = update_interval
        self.refresh_interval = refresh_interval
        self.distance = distance
        self._check()
        # Plain text, part of the digest of saved states.
        self.recipe = (
            f'{self.focus} {self.selection} {self.strengths} {distance}'
        )
        self._network = _Network()

    def _check(self) -> None:
        for name, rule in (
            ('sensitivity', Choice(choices=FORMS)),
            ('num_images', Whole(low=1)),
            ('update_interval', Whole(low=1)),
            ('refresh_interval', Whole(low=0)),
        ):
            setattr(self, name, rule.read(getattr(self, name), name=name))
        ends = (0, *self.strengths)
        if ends[-1] < 1 or sorted(set(ends)) != list(ends):
            raise refuse(
                'strengths',
                self.strengths,
                'give increasing numbers above 0 that end at 1 or more',
            )
        MovingAverage(self.ema)
        build_distance(self.distance)

    @property
    def weights(self) -> dict[str, float]:
        """Current weight of each head; they sum to 1."""
        return dict(self._network.weights)

    def begin(self, probe: NetworkProbe) -> None:
        """Measure the float heads, and the sensitivities if needed.

        Args:
            probe: The network before the first step.
        """
        network = self._network = _Network(probe=probe)
        network.average = MovingAverage(self.ema)
        network.variances = self.focus.variances(
            probe.heads_float, adapter=probe.adapter, metas=probe.metas
        )
        first = 0
        for number, metas in enumerate(probe.metas):
            network.numbers[first] = number
            first += len(metas)
        if self.selection.selection is None:
            self._weigh(dict.fromkeys(network.variances, 0.0), step=0)
            return
        count = self._num_batches(probe)
        network.swaps = HeadSwaps(
            probe.heads_float[:count],
            probe.metas[:count],
            adapter=probe.adapter,
            distance=build_distance(self.distance),
            form=self.sensitivity,
        )
        quant = [probe.run(number) for number in range(count)]
        errors = self._errors_of(quant)
        network.curves = build_curves(
            network.swaps, quant, errors=errors, strengths=self.strengths
        )
        at_present = {n: c(errors[n]) for n, c in network.curves.items()}
        self._weigh(network.average.update(at_present), step=0, exact=True)

    def _num_batches(self, probe: NetworkProbe) -> int:
        seen = 0
        for number, metas in enumerate(probe.metas):
            seen += len(metas)
            if seen >= self.num_images:
                return number + 1
        return len(probe.metas)

    def __call__(
        self, quant_out: Outputs, float_out: Outputs, context: ReconContext
    ) -> Tensor:
        """Return the loss of one minibatch.

        Raises:
            ValueError: If the unit isn't the whole network.
        """
        network = self._network
        if (
            context.unit
            or not isinstance(quant_out, dict)
            or (network.probe is None)
        ):
            raise ValueError(
                f'{type(self).__name__} on the unit {context.unit!r}: it '
                "needs named heads; set reconstruction.scope='network' or "
                'network_steps'
            )
        assert isinstance(float_out, dict)
        errors = self.focus.errors(
            quant_out,
            float_out,
            variances=network.variances,
            adapter=context.adapter,
            weights=self._near(float_out, context.image_ids),
        )
        self._update(context.step, errors)
        terms = [
            weight * errors[name]
            for name, weight in network.weights.items()
            if weight > 0
        ]
        return torch.stack(terms).sum()

    def _near(
        self, heads: Heads, images: Sequence[int]
    ) -> dict[str, Tensor] | None:
        """Return weights by decoded predictions, None for other foci.

        They are kept for each batch, since decoding costs as much as a step
        of a small model.
        """
        network, probe = self._network, self._network.probe
        if self.focus.focus != 'decoded' or probe is None:
            return None
        number = network.numbers[images[0]]
        kept = heads is probe.heads_float[number]
        if kept and number in network.near:
            return network.near[number]
        weights = self.focus.weights(
            heads, adapter=probe.adapter, metas=probe.metas[number]
        )
        if kept:
            network.near[number] = weights
        return weights

    def _update(self, step: int, errors: Heads) -> None:
        """Update the sensitivities; only refreshes decode predictions."""
        if self._network.swaps is None or step == 0:
            return
        refreshes = self.refresh_interval
        if refreshes and step % refreshes == 0:
            self._refresh(step)
        elif step % self.update_interval == 0:
            found = _plain(errors)
            curves = self._network.curves
            values = {name: curves[name](found[name]) for name in curves}
            self._weigh(self._network.average.update(values), step=step)

    @torch.no_grad()
    def _refresh(self, step: int) -> None:
        """Measure the sensitivities of the current model."""
        network = self._network
        assert network.probe is not None
        assert network.swaps is not None
        count = len(network.swaps.batches)
        quant = [network.probe.run(number) for number in range(count)]
        values = network.swaps.sensitivities(quant)
        errors = self._errors_of(quant)
        for name, value in values.items():
            network.curves[name].add(errors[name], value)
        self._weigh(network.average.update(values), step=step, exact=True)

    @torch.no_grad()
    def _errors_of(self, quant: Sequence[Heads]) -> dict[str, float]:
        """Return the error of each head, mean over the probed batches."""
        probe = self._network.probe
        assert probe is not None
        sums: dict[str, Tensor] = {}
        for first, heads in zip(self._network.numbers, quant, strict=False):
            target = probe.heads_float[self._network.numbers[first]]
            found = self.focus.errors(
                heads,
                target,
                variances=self._network.variances,
                adapter=probe.adapter,
                weights=self._near(target, (first,)),
            )
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value / len(quant)
        return _plain(sums)

    def _weigh(
        self, values: Mapping[str, float], *, step: int, exact: bool = False
    ) -> None:
        """Set the weights from sensitivities, and record both."""
        self._network.weights = self.selection.weights(values)
        self._network.history.append(
            {
                'step': step,
                'exact': exact,
                'sensitivity': dict(values),
                'weight': dict(self._network.weights),
            }
        )

    def report(self) -> dict[str, Any]:
        """Return the history of sensitivities and weights, plain types."""
        return {'heads': self._network.history}


@RECON_LOSSES.register_module()
class NetworkUniform(SelectiveFocusLoss):
    """Baseline without focus: equal weights for all heads and locations.

    Args:
        normalize: See ``SelectiveFocusLoss``.
        var_eps: See ``SelectiveFocusLoss``.
        by_query: Compare the outputs of a decoder's queries, layer by layer,
            as ``QueryDistillationLoss`` does.
    """

    def __init__(
        self,
        *,
        normalize: str | None = 'head',
        var_eps: float = 1e-6,
        by_query: bool = False,
    ) -> None:
        super().__init__(
            focus=None, selection=None, normalize=normalize, var_eps=var_eps
        )
        self.by_query = Flag().read(by_query, name='by_query')


def _plain(values: Heads) -> dict[str, float]:
    """Return scalars as floats, mean over ranks, in a single transfer."""
    stacked = torch.stack([value.detach() for value in values.values()])
    means = mean_over_ranks(stacked.float()).tolist()
    return dict(zip(values, means, strict=True))
