"""Settings of reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from taskptq.core.settings import (
    SEED,
    Choice,
    Flag,
    Number,
    SettingError,
    Table,
    Text,
    Whole,
    check_fields,
    check_keys,
    patterns,
    refuse,
    rule_of,
    setting,
)
from taskptq.prepare.blocks import SCOPES

ROUNDINGS = ('adaround', 'gptq', 'nearest')
STARTS = ('nearest', 'gptq')
# More steps would take months, so they must be a mistake.
MAX_STEPS = 10_000_000
MAX_BATCH = 1 << 16
# Without steps on the network nothing would use these.
ONLY_NETWORK = (
    'network_train',
    'network_optional',
    'vary_images',
    'keep_better',
    'channels_last',
)
NETWORK_SETTINGS = (
    'weight_lr',
    'scale_lr',
    'learn_scales',
    'drop_prob',
    'rounding_weight',
    'warmup',
    'beta_start',
    'beta_end',
    'patience',
    'straight_through',
    'latent_weights',
    'keep_better',
    'channels_last',
)


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Settings of reconstruction.

    Published recipes run 20,000 steps with weight_lr 1e-3. At a few hundred
    steps, roundings settle only with 0.1 to 0.3 (seen in single trial runs
    of one detector with 2-bit weights).

    Args:
        rounding: 'adaround' learns it, 'gptq' solves it in closed form layer
            by layer, 'nearest' keeps it and learns scales only.
        scope: 'layer', 'block' or 'network'.
        steps: Optimizer steps per unit.
        network_steps: Optimizer steps on the whole network after all layers
            or blocks. The configured loss then applies to that phase only;
            units train on the mean squared error. Needs the model's adapter.
        network_train: Name patterns of the layers to train on the whole
            network, e.g. ``('decoder*', 'bbox_head*')``; empty trains all.
        straight_through: Round hard in the forward pass, without a penalty:
            a whole network of soft roundings can fit the float one while
            few of them are settled.
        latent_weights: Train codes that may move freely, scales of weights
            and biases as well (:class:`LatentWeight`), hard in the forward
            pass: quantization-aware training towards the float model.
            ``scale_lr`` is the rate of scales and biases.
        network_batch_size: Images per minibatch on the whole network; None
            uses whole calibration batches.
        network_optional: Leave these steps out, with a warning, where the
            model's outputs cannot be compared or differentiated.
        vary_images: Largest logarithm of a random zoom of the images of
            each minibatch there, which are also shifted and mirrored; 0
            leaves them as they are. Costs a pass of the float model.
        keep_better: Measure the loss of all calibration batches before and
            after the steps on the whole network, and undo the steps unless
            it fell. Takes two passes over the set.
        channels_last: Keep the weights of convolutions with channels last
            during the steps on the whole network, as ``latent_weights``
            always does: a quarter less time on a CPU; sums round differently.
        network: Settings that differ in ``network_steps``, e.g.
            ``dict(weight_lr=0.05, drop_prob=0.0)``.
        batch_size: Images per minibatch, where rows can be drawn.
        rows_per_image: Most rows per image where rows are not images.
        weight_lr: Adam's learning rate of the roundings; constant for half
            of the steps, then cosine-annealed to 0.
        scale_lr: Adam's learning rate of activation scales, relative to each
            scale; cosine-annealed to 0.
        learn_scales: Learn activation scales (needs LSQQuantizer).
        drop_prob: QDrop's probability of the float value; 0 is BRECQ.
        rounding_weight: Weight of the rounding penalty, relative to the
            unit's loss at the end of the warm-up.
        warmup: Share of the steps without the penalty.
        beta_start: First exponent of the penalty (AdaRound, Eq. 24).
        beta_end: Last exponent, from 2 to ``beta_start``.
        skip_below: Leave a unit rounded to nearest if its loss is already
            below this (noise to signal, for the default loss): 8-bit units
            have nothing to gain; 0 trains every unit.
        patience: Stop a unit when its loss has not fallen by 1 % in this
            many steps and 99.9 % of its roundings are settled; None never
            stops early.
        autocast: None, or 'bfloat16' to run the units in mixed precision.
        seed: Seed of minibatches and drops.
        cache_bytes: Memory budget of the activation cache.
        cache_dir: Folder for activations over that budget; None is the
            system's temporary folder.
        cache_disk_bytes: Disk budget of the cache; None uses the free space,
            less a margin.
        blocks: Name patterns of further blocks.
        gptq_damping: Share of the Hessian's mean diagonal added to it.
        gptq_sweeps: Most sweeps over all codes of a layer after GPTQ, which
            move single codes where the output error falls.
        start: Codes that learned roundings start from: 'nearest' or 'gptq'.
        match_float: GPTQ rounds the weights that give, on the inputs of the
            quantized model, the outputs of the float model on its own.
        output_ranges: Search the range of each output channel's weights by
            the error of the layer's output.
        bias_correction: Give each quantized layer the mean output, channel
            by channel, of the float model.
        input_ranges: First scale the steps of activations with less than 8
            bits so that their errors change the model's outputs least;
            takes one pass with gradients over 16 images, and the model's
            adapter.
        position_weights: Closed-form steps and the default loss of units
            weigh the positions of feature maps by how much the model's
            outputs depend on them; takes one pass with gradients, and the
            model's adapter.
        position_optional: Go on without ``position_weights`` and
            ``input_ranges``, with a warning, where the model's outputs cannot
            be compared or differentiated.

    Raises:
        SettingError: If a value is invalid.
    """

    rounding: str = setting('adaround', Choice(choices=ROUNDINGS))
    scope: str = setting('block', Choice(choices=SCOPES))
    steps: int = setting(400, Whole(low=1, high=MAX_STEPS))
    network_steps: int = setting(0, Whole(low=0, high=MAX_STEPS))
    network_train: tuple[str, ...] = setting((), patterns())
    network_batch_size: int | None = setting(
        None, Whole(low=1, high=MAX_BATCH, optional=True)
    )
    network_optional: bool = setting(False, Flag())
    vary_images: float = setting(0.0, Number(low=0, high=2))
    straight_through: bool = setting(False, Flag())
    latent_weights: bool = setting(False, Flag())
    keep_better: bool = setting(False, Flag())
    channels_last: bool = setting(False, Flag())
    network: Mapping[str, Any] = setting(rule=Table(), factory=dict)
    batch_size: int = setting(8, Whole(low=1, high=MAX_BATCH))
    rows_per_image: int = setting(32, Whole(low=1, high=1 << 20))
    weight_lr: float = setting(0.25, Number(low=0, high=100))
    scale_lr: float = setting(5e-3, Number(low=0, high=1))
    learn_scales: bool = setting(True, Flag())
    drop_prob: float = setting(0.5, Number(low=0, high=1))
    rounding_weight: float = setting(1.0, Number(low=0, high=1e6))
    warmup: float = setting(0.2, Number(low=0, high=1))
    beta_start: float = setting(20.0, Number(low=2, high=100))
    beta_end: float = setting(2.0, Number(low=2, high=100))
    skip_below: float = setting(1e-4, Number(low=0))
    patience: int | None = setting(None, Whole(low=1, optional=True))
    autocast: str | None = setting(
        None, Choice(choices=('bfloat16',), optional=True)
    )
    seed: int = setting(0, SEED)
    cache_bytes: int = setting(2 << 30, Whole(low=0))
    cache_dir: str | None = setting(None, Text(path=True, optional=True))
    cache_disk_bytes: int | None = setting(None, Whole(low=0, optional=True))
    blocks: tuple[str, ...] = setting((), patterns())
    gptq_damping: float = setting(0.01, Number(above=0, high=100))
    gptq_sweeps: int = setting(0, Whole(low=0, high=1000))
    start: str = setting('nearest', Choice(choices=STARTS))
    match_float: bool = setting(False, Flag())
    output_ranges: bool = setting(False, Flag())
    bias_correction: bool = setting(False, Flag())
    input_ranges: bool = setting(False, Flag())
    position_weights: bool = setting(False, Flag())
    position_optional: bool = setting(False, Flag())

    def __post_init__(self) -> None:
        check_fields(self, name='reconstruction')
        self._check_network()
        self._check_closed_form()
        if self.beta_end > self.beta_start:
            raise refuse(
                'reconstruction.beta_end',
                self.beta_end,
                f'give at most beta_start, which is {self.beta_start}',
            )

    def _check_network(self) -> None:
        """Refuse network settings that nothing would use."""
        steps = 'reconstruction.network_steps'
        if self.network_steps and self.scope == 'network':
            raise refuse(
                steps,
                self.network_steps,
                "give 0, or choose scope='layer' or 'block'",
            )
        if self.latent_weights and self.rounding != 'adaround':
            raise refuse(
                'reconstruction.latent_weights',
                True,
                "only learned weights move: choose rounding='adaround', or "
                'set it in reconstruction.network',
            )
        for name in ONLY_NETWORK:
            value = getattr(self, name)
            if value and not (self.network_steps or self.scope == 'network'):
                raise refuse(
                    f'reconstruction.{name}',
                    value,
                    'remove it, or train the whole network with '
                    "network_steps or scope='network'",
                )
        if self.network:
            self._check_own_settings()

    def _check_closed_form(self) -> None:
        """Refuse closed-form settings that nothing would use."""
        if self.start == 'gptq' and self.rounding != 'adaround':
            raise refuse(
                'reconstruction.start',
                self.start,
                'only learned roundings start from it: choose '
                "rounding='adaround'",
            )
        solved = ('match_float', 'gptq_sweeps')
        fitted = ('output_ranges', 'bias_correction')
        for name in (*solved, *fitted):
            value = getattr(self, name)
            if value and self.scope == 'network':
                raise refuse(
                    f'reconstruction.{name}',
                    value,
                    "remove it, or choose scope='layer' or 'block'",
                )
            if value and name in solved and not self.solves_codes:
                raise refuse(
                    f'reconstruction.{name}',
                    value,
                    "remove it, or choose rounding='gptq' or start='gptq'",
                )

        if self.position_weights and not self.reads_both_models:
            raise refuse(
                'reconstruction.position_weights',
                True,
                'remove it, or add what it weighs: match_float, '
                'output_ranges, bias_correction or gptq_sweeps',
            )
        if self.position_optional and not (
            self.position_weights or self.input_ranges
        ):
            raise refuse(
                'reconstruction.position_optional',
                True,
                'remove it, or set position_weights or input_ranges',
            )

    @property
    def needs_adapter(self) -> bool:
        """Whether named outputs of the model are needed."""
        return bool(
            self.scope == 'network'
            or self.network_steps
            or self.position_weights
            or self.input_ranges
        )

    @property
    def solves_codes(self) -> bool:
        """Whether GPTQ rounds, for good or as a start."""
        return 'gptq' in (self.rounding, self.start)

    @property
    def rounds_hard(self) -> bool:
        """Whether the forward pass of training has no soft roundings."""
        return self.straight_through or self.latent_weights

    @property
    def moves_weight_ranges(self) -> bool:
        """Whether weights may end in other ranges than calibrated ones."""
        return bool(
            self.output_ranges
            or self.latent_weights
            or self.network.get('latent_weights')
        )

    @property
    def reads_both_models(self) -> bool:
        """Whether closed-form steps compare the two models' inputs."""
        return bool(
            self.match_float
            or self.output_ranges
            or self.bias_correction
            or self.gptq_sweeps
        )

    def _check_own_settings(self) -> None:
        """Check the settings that differ in ``network_steps``."""
        name = 'reconstruction.network'
        check_keys(self.network, NETWORK_SETTINGS, name=name)
        if not self.network_steps:
            raise refuse(
                name, dict(self.network), 'give network_steps as well'
            )
        own = {
            key: rule_of(type(self), key).read(value, name=f'{name}.{key}')
            for key, value in self.network.items()
        }
        object.__setattr__(self, 'network', own)
        try:
            self.of_network()
        except SettingError as error:
            own_name = error.name.replace('reconstruction', name, 1)
            raise SettingError(own_name, error.problem) from None

    def of_network(self) -> ReconstructionConfig:
        """Return the settings of the ``network_steps``."""
        return replace(
            self,
            scope='network',
            # Solved roundings are where learned ones start.
            rounding='nearest' if self.rounding == 'nearest' else 'adaround',
            steps=self.network_steps,
            network_steps=0,
            network={},
            start='nearest',
            gptq_sweeps=0,
            match_float=False,
            output_ranges=False,
            bias_correction=False,
            input_ranges=False,
            position_weights=False,
            position_optional=False,
            **self.network,
        )

    def of_units(self) -> ReconstructionConfig:
        """Return the settings of the units, without network steps."""
        return replace(
            self,
            network_steps=0,
            network_train=(),
            network_batch_size=None,
            network_optional=False,
            vary_images=0.0,
            keep_better=False,
            channels_last=False,
            network={},
        )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ReconstructionConfig:
        """Read the plain form.

        Raises:
            SettingError: If a key is unknown or a value is invalid.
        """
        known = [known_field.name for known_field in fields(cls)]
        check_keys(config, known, name='reconstruction')
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        plain = {
            'blocks': list(self.blocks),
            'network_train': list(self.network_train),
            'network': dict(self.network),
        }
        return {**asdict(self), **plain}
