"""Quantizers and observers from the settings of one point."""

import pytest
from torch import nn

from taskptq.core import AffineQuantizer, MinMaxObserver, MSEObserver
from taskptq.prepare import QConfig
from taskptq.prepare.point_config import quantizer_config, resolve_imported

COMPLETE = QConfig.from_dict({}).points


def test_float_points_have_no_quantizer() -> None:
    assert quantizer_config('softmax', False, resolve=resolve_imported) is None


def test_settings_become_spec_types_and_arguments() -> None:
    settings = {
        **COMPLETE['weight'],
        'num_bits': 5,
        'observer': {'type': 'MSEObserver', 'num_candidates': 7},
    }
    found = quantizer_config('weight', settings, resolve=resolve_imported)
    assert found.spec.num_bits == 5
    assert found.per_channel
    assert found.quantizer is AffineQuantizer
    assert found.observer is MSEObserver
    assert found.observer_kwargs == {'num_candidates': 7}


def test_an_operand_is_one_of_attention() -> None:
    settings = COMPLETE['attention']
    operand, attention = (
        quantizer_config(point, settings, resolve=resolve_imported)
        for point in ('operand', 'attention')
    )
    assert operand == attention


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ValueError, match="no observer 'Mine': choose one of"):
        resolve_imported('observer', 'Mine')


class Strange(MinMaxObserver):
    def __init__(self, spec: object, **kwargs: float) -> None:
        super().__init__(spec)
        self.factor = kwargs['factor'] / kwargs['divisor']


@pytest.mark.parametrize(
    ('kwargs', 'said'),
    [
        ({}, 'factor'),
        ({'factor': 1, 'divisor': 0}, 'division by zero'),
        ({'factor': 'a', 'divisor': 1}, 'unsupported operand'),
    ],
)
def test_what_a_strange_observer_raises_is_one_sentence(
    kwargs: dict, said: str
) -> None:
    settings = {'activation': {'observer': {'type': 'Strange', **kwargs}}}
    classes = {
        'Strange': Strange,
        'MinMaxObserver': MinMaxObserver,
        'AffineQuantizer': AffineQuantizer,
    }
    with pytest.raises(ValueError, match=said) as caught:
        QConfig.from_dict(settings, resolve=lambda kind, name: classes[name])
    assert str(caught.value).startswith('qconfig.activation.observer=')


@pytest.mark.parametrize('found', [nn.Identity, MinMaxObserver, None, 'text'])
def test_type_must_be_a_quantizer(found: object) -> None:
    with pytest.raises(ValueError, match=r"weight\.type='mine'.*Quantizer"):
        QConfig.from_dict(
            {'weight': {'type': 'mine'}}, resolve=lambda kind, name: found
        )
