"""Every field of every settings class, changed: it works, or one sentence.

A sentence names the setting, shows the value and says what is allowed. What
is accepted is used: a grid is calibrated, a reconstruction runs some steps.
"""

from __future__ import annotations

import copy
import inspect
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from taskptq import core
from taskptq.calibration import calibrate
from taskptq.core import Observer, QuantizerConfig, QuantSpec
from taskptq.core.settings import SettingError, shown
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.points import HEADED, POINTS
from taskptq.reconstruction.config import (
    NETWORK_SETTINGS,
    ReconstructionConfig,
)
from taskptq.reconstruction.reconstruct import reconstruct

SECONDS = 5
VALUES = (
    None,
    True,
    False,
    -1,
    0,
    1,
    10**12,
    10**5000,
    0.5,
    4.0,
    -0.5,
    1e30,
    math.nan,
    math.inf,
    -math.inf,
    '',
    ' ',
    '4',
    '1e-3',
    'False',
    'nan',
    'nonsense',
    're:(',
    b'4',
    [],
    [1],
    [None],
    ['a', ''],
    (),
    {},
    {'a': {'b': 1}},
    {3: 4},
    object,
    {1},
)
tried: list[int] = []


@contextmanager
def limited() -> Iterator[None]:
    """Stop what hangs."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f'not done after {SECONDS} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_sentence(error: ValueError, name: str, value: Any) -> None:
    text = str(error)
    assert isinstance(error, SettingError), repr(error)
    assert '\n' not in text, text
    assert len(text) < 1500, text
    assert text.startswith(name), text
    parts = [value]
    if isinstance(value, (list, tuple, set)):
        parts.extend(value)
    elif isinstance(value, Mapping):
        parts.extend([*value, *value.values()])
    assert any(shown(part) in text for part in parts), text
    assert any(
        word in text
        for word in (
            ': give ',
            ': choose ',
            ': remove it, or ',
            ': known are ',
            ' is for ',
            ' has no ',
            ' takes no argument ',
            'center one of them',
        )
    ), text


def mutate(
    build: Callable[[Any], Any],
    name: str,
    use: Callable[[Any], None] | None = None,
) -> None:
    """Try every value; use what is accepted."""
    for value in VALUES:
        tried.append(1)
        given = copy.deepcopy(value)
        try:
            with limited():
                built = build(value)
                if use is not None:
                    use(built)
        except ValueError as error:
            check_sentence(error, name, value)
        except Exception as error:
            raise AssertionError(
                f'{name}={shown(value)}: {type(error).__name__}: {error}'
            ) from error
        assert given == value or value != value, f'{name} was changed'


def misspelt(name: str) -> str:
    """Two letters swapped, or in a short name one added."""
    if len(name) < 5:
        return f'{name}x'
    return name[:-2] + name[-1] + name[-2]


def check_unknown(
    build: Callable[[dict], Any], name: str, known: list[str]
) -> None:
    """Refuse misspelt keys, and name the nearest known one."""
    for key in known:
        tried.append(1)
        with pytest.raises(SettingError) as caught:
            build({misspelt(key): 1})
        text = str(caught.value)
        assert text.startswith(f'{name} has unknown key {misspelt(key)!r}')
        assert 'did you mean' in text
        assert 'known are' in text
    with pytest.raises(SettingError, match=r'known are|keys are strings'):
        build({5: 1})


class Attention(nn.Module):
    """A convolution, a linear layer and an attention of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.inner = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.inner(self.stem(x).flatten(2).transpose(1, 2)))
        return self.head(self.attention(x, x, x)[0])


def forward(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch)


@pytest.fixture(scope='module')
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 2, 3, 3, generator=generator) for _ in range(2)]


@pytest.fixture
def runs(batches: list[torch.Tensor]) -> Callable[[QConfig], None]:
    """Quantize a tiny model, once for each recipe."""
    seen: set[str] = set()
    torch.manual_seed(0)
    model = Attention().eval()

    def run(qconfig: QConfig) -> None:
        plain = {**qconfig.to_dict(), 'edges': [], 'keep_float': []}
        for override in plain['overrides']:
            override['pattern'] = '*'
        if repr(plain) in seen:
            return
        seen.add(repr(plain))
        quantized = copy.deepcopy(model)
        prepare(quantized, QConfig.from_dict(plain))
        calibrate(quantized, batches, forward=forward)
        with core.quantizing(quantized), torch.no_grad():
            assert quantized(batches[0]).isfinite().all()

    return run


@pytest.mark.parametrize('name', [f.name for f in fields(QuantSpec)])
def test_quant_spec(name: str) -> None:
    mutate(lambda value: QuantSpec(**{name: value}), name)


@pytest.mark.parametrize('name', [f.name for f in fields(QuantizerConfig)])
def test_quantizer_config(name: str) -> None:
    mutate(lambda value: QuantizerConfig(**{name: value}), name)


@pytest.mark.parametrize(
    'name', [*POINTS, 'edge_bits', 'edges', 'overrides', 'keep_float']
)
def test_qconfig(name: str, runs: Callable[[QConfig], None]) -> None:
    mutate(
        lambda value: QConfig.from_dict({name: value}), f'qconfig.{name}', runs
    )


@pytest.mark.parametrize(
    'name', [f.name for f in fields(QConfig) if f.name != 'resolve']
)
def test_qconfig_made_directly(name: str) -> None:
    points = QConfig.from_dict({}).points
    mutate(
        lambda value: QConfig(**{'points': points, name: value}),
        f'qconfig.{name}',
    )


@pytest.mark.parametrize(
    ('point', 'name'),
    [
        *((point, 'per_head') for point in HEADED),
        *(
            (point, name)
            for point in POINTS
            for name in (
                'type',
                'num_bits',
                'symmetric',
                'signed',
                'per_channel',
                'observer',
            )
        ),
    ],
)
def test_points(
    point: str, name: str, runs: Callable[[QConfig], None]
) -> None:
    mutate(
        lambda value: QConfig.from_dict({point: {name: value}}),
        f'qconfig.{point}.{name}',
        runs,
    )


@pytest.mark.parametrize('name', ['pattern', *POINTS])
def test_overrides(name: str, runs: Callable[[QConfig], None]) -> None:
    mutate(
        lambda value: QConfig.from_dict(
            {'overrides': [{'pattern': 'a*', name: value}]}
        ),
        f'qconfig.overrides[0].{name}',
        runs,
    )


@pytest.mark.parametrize(
    'name',
    ['type', 'num_bits', 'symmetric', 'signed', 'per_channel', 'observer'],
)
def test_points_of_overrides(
    name: str, runs: Callable[[QConfig], None]
) -> None:
    mutate(
        lambda value: QConfig.from_dict(
            {'overrides': [{'pattern': 'a*', 'weight': {name: value}}]}
        ),
        f'qconfig.overrides[0].weight.{name}',
        runs,
    )


def keywords(cls: type) -> list[str]:
    return [
        name
        for name, one in inspect.signature(cls).parameters.items()
        if one.kind is inspect.Parameter.KEYWORD_ONLY and name != 'observer'
    ]


CLASSES = [
    getattr(core, name)
    for name in core.__all__
    if isinstance(getattr(core, name), type)
]
OBSERVER_ARGUMENTS = [
    (cls.__name__, name)
    for cls in CLASSES
    if issubclass(cls, Observer)
    for name in [*keywords(cls), 'type']
]
QUANTIZER_ARGUMENTS = [
    (cls.__name__, name)
    for cls in CLASSES
    if issubclass(cls, core.Quantizer)
    for name in keywords(cls)
]


@pytest.mark.parametrize(('kind', 'name'), OBSERVER_ARGUMENTS)
def test_observers(
    kind: str, name: str, runs: Callable[[QConfig], None]
) -> None:
    searched = kind == 'AttentionOutputObserver'
    for point in ['softmax'] if searched else ['weight', 'activation']:
        mutate(
            lambda value, point=point: QConfig.from_dict(
                {point: {'observer': {'type': kind, name: value}}}
            ),
            f'qconfig.{point}.observer.{name}',
            runs,
        )


@pytest.mark.parametrize(('kind', 'name'), QUANTIZER_ARGUMENTS)
def test_quantizers(
    kind: str, name: str, runs: Callable[[QConfig], None]
) -> None:
    point = {
        'AlignedQuantizer': 'query',
        'PowerOfTwoQuantizer': 'softmax',
    }.get(kind, 'activation')
    # Such grids have few bits; eight are for the layers that keep more.
    own = {'num_bits': 2} if kind == 'LevelQuantizer' else {}
    mutate(
        lambda value: QConfig.from_dict(
            {point: {'type': kind, **own, name: value}}
        ),
        f'qconfig.{point}.{name}',
        runs,
    )


@pytest.fixture
def rebuilds(
    batches: list[torch.Tensor], tmp_path, monkeypatch
) -> Callable[[ReconstructionConfig], None]:
    """Reconstruct a tiny calibrated model."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    prepare(
        model,
        QConfig.from_dict(
            {
                'weight': {'num_bits': 3},
                'edge_bits': None,
                'activation': {'type': 'LSQQuantizer', 'num_bits': 3},
            }
        ),
    )
    calibrate(model, batches, forward=forward)
    # The first optimizer imports for seconds.
    torch.optim.Adam([nn.Parameter(torch.zeros(1))]).step()

    def run(config: ReconstructionConfig) -> None:
        if config.needs_adapter or config.blocks:
            return  # they need an adapter, and layers of these names
        rebuilt = copy.deepcopy(model)
        reconstruct(rebuilt, batches, config, forward=forward, progress=False)
        with core.quantizing(rebuilt), torch.no_grad():
            assert rebuilt(batches[0]).isfinite().all()

    return run


@pytest.mark.parametrize(
    ('rounding', 'name'),
    [
        ('gptq', 'gptq_damping'),
        ('gptq', 'batch_size'),
        *(('adaround', f.name) for f in fields(ReconstructionConfig)),
    ],
)
def test_reconstruction(
    name: str, rounding: str, rebuilds: Callable[[ReconstructionConfig], None]
) -> None:
    few = {'steps': 3, 'skip_below': 0.0, 'rounding': rounding}
    mutate(
        lambda value: ReconstructionConfig.from_dict({**few, name: value}),
        f'reconstruction.{name}',
        rebuilds,
    )


@pytest.mark.parametrize('name', NETWORK_SETTINGS)
def test_reconstruction_of_the_network(name: str) -> None:
    mutate(
        lambda value: ReconstructionConfig.from_dict(
            {'network_steps': 1, 'network': {name: value}}
        ),
        f'reconstruction.network.{name}',
    )


@pytest.mark.parametrize(
    'settings',
    [
        {'network_steps': 5, 'scope': 'network'},
        {'network_train': ['a'], 'steps': 1},
        {'keep_better': True},
        {'network': {'weight_lr': 0.1}},
        {'beta_start': 2, 'beta_end': 4},
        {'network': {'beta_end': 50}, 'network_steps': 1},
    ],
)
def test_settings_that_exclude_each_other(settings: dict) -> None:
    with pytest.raises(
        SettingError, match=r': (give|remove it, or)'
    ) as caught:
        ReconstructionConfig.from_dict(settings)
    name = caught.value.name.removeprefix('reconstruction.').split('.')[0]
    assert name in {*settings, 'beta_end'}


def test_unknown_keys() -> None:
    check_unknown(QConfig.from_dict, 'qconfig', [*POINTS, 'edge_bits'])
    check_unknown(
        ReconstructionConfig.from_dict,
        'reconstruction',
        [f.name for f in fields(ReconstructionConfig)],
    )
    check_unknown(
        lambda keys: QConfig.from_dict(
            {'overrides': [{'pattern': 'a', **keys}]}
        ),
        'qconfig.overrides[0]',
        list(POINTS),
    )
    for kind, name in OBSERVER_ARGUMENTS:
        if name == 'type' or kind == 'AttentionOutputObserver':
            continue
        with pytest.raises(SettingError, match=f'did you mean {name!r}'):
            QConfig.from_dict(
                {'weight': {'observer': {'type': kind, misspelt(name): 1}}}
            )
    for kind, name in QUANTIZER_ARGUMENTS:
        if len(name) < 4:
            continue
        with pytest.raises(SettingError, match=f'did you mean {name!r}'):
            QConfig.from_dict({'query': {'type': kind, misspelt(name): 1}})


@pytest.fixture
def engine() -> Any:
    return pytest.importorskip('taskptq.engine')


@pytest.mark.parametrize(
    'name',
    [
        'num_images',
        'dataset',
        'pipeline',
        'batch_size',
        'seed',
        'allow_overlap',
        'unreached',
        'noise',
    ],
)
def test_calibration(engine: Any, name: str) -> None:
    from taskptq.engine.calibration_config import CalibrationConfig
    from taskptq.engine.calibration_data import choose

    assert name in {f.name for f in fields(CalibrationConfig)}

    def draw(config: CalibrationConfig) -> None:
        if config.num_images <= 2:
            choose(
                [(0, 0), (0, 1)],
                num_images=config.num_images,
                seed=config.seed,
            )

    mutate(
        lambda value: CalibrationConfig.from_dict({name: value}),
        f'calibration.{name}',
        draw,
    )
    check_unknown(CalibrationConfig.from_dict, 'calibration', [name])
    mutate(CalibrationConfig.from_dict, 'calibration')


def test_distillation(engine: Any) -> None:
    from taskptq.qat.distillation import DistillationConfig

    known = [f.name for f in fields(DistillationConfig)]
    for name in known:
        mutate(
            lambda value, name=name: DistillationConfig.from_dict(
                {name: value}
            ),
            f'distillation.{name}',
        )
    check_unknown(
        DistillationConfig.from_dict,
        'distillation',
        [name for name in known if len(name) > 4],
    )
    teacher = {'config': 'a.py', 'checkpoint': 'b.pth'}
    for name in [*teacher, 'trust_checkpoint']:
        mutate(
            lambda value, name=name: DistillationConfig.from_dict(
                {'teacher': {**teacher, name: value}}
            ),
            f'distillation.teacher.{name}',
        )


def test_learning_rate_multipliers(engine: Any) -> None:
    from taskptq.qat.optimizer import KINDS, read_lr_mult

    mutate(read_lr_mult, 'lr_mult')
    for kind in KINDS:
        mutate(
            lambda value, kind=kind: read_lr_mult({kind: value}),
            f'lr_mult.{kind}',
        )


def test_hooks(engine: Any) -> None:
    from taskptq.engine.ptq_hook import PTQHook
    from taskptq.qat.hook import QATHook

    for hook, names in (
        (PTQHook, ['out', 'resume', 'trust_checkpoint']),
        (QATHook, ['out', 'trust_checkpoint']),
    ):
        for name in ['seed', *names]:
            mutate(
                lambda value, hook=hook, name=name: hook(**{name: value}),
                f'{hook.__name__}.{name}',
            )
        mutate(lambda value, hook=hook: hook(calibration=value), 'calibration')
    mutate(lambda value: QATHook(stage=value), 'stage')
    mutate(lambda value: QATHook(lr_mult=value), 'lr_mult')
    for name in ('reconstruction', 'loss', 'rewrites'):
        mutate(lambda value, name=name: PTQHook({}, **{name: value}), name)


def test_parts_of_a_recipe(engine: Any) -> None:
    from taskptq.engine.hook_settings import check_recipe

    for name in ('reconstruction', 'loss', 'rewrites', 'seed'):
        mutate(lambda value, name=name: check_recipe(**{name: value}), name)


@pytest.mark.parametrize(
    'kind',
    [
        'MSEReconLoss',
        'QueryDistillationLoss',
        'SelectiveFocusLoss',
        'NetworkUniform',
        'ForegroundKLLoss',
        'AttentionCentering',
        'BimodalIntegration',
        'ChannelScale',
        'ChannelShiftScale',
        'ChannelSplit',
        'ConstantBranch',
        'CrossLayerEqualization',
        'HeadRotation',
        'KeyShift',
    ],
)
def test_losses_and_rewrites(engine: Any, kind: str) -> None:
    from taskptq.engine.hook_settings import check_recipe
    from taskptq.registry import RECON_LOSSES, REWRITES

    cls = REWRITES.get(kind)
    for name in keywords(cls or RECON_LOSSES.get(kind)):
        if cls is None:
            mutate(
                lambda value, name=name: check_recipe(
                    loss={'type': kind, name: value}
                ),
                'loss' if name == 'teacher' else f'loss.{name}',
            )
        else:
            mutate(
                lambda value, name=name: check_recipe(
                    rewrites=[{'type': kind, name: value}]
                ),
                f'rewrites[0].{name}',
            )


def test_enough_was_tried() -> None:
    assert len(tried) >= 400
