"""What the tests of the counterparts share."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.core import QuantizerConfig, QuantSpec, enable, observing
from taskptq.core.switches import quantizers
from taskptq.modules import (
    QuantLinear,
    QuantModule,
    Scheme,
    counterpart_class,
    leave_fast_paths,
    quant_modules,
    share_inputs,
)


def make_scheme(
    *, weight=4, activation=8, attention=8, softmax=8, per_head=False, **kwargs
):
    """Return a scheme; None bits leave a point float."""

    def config(bits, *, per_channel=False):
        if bits is None:
            return None
        return QuantizerConfig(
            spec=QuantSpec(num_bits=bits), per_channel=per_channel, **kwargs
        )

    return Scheme(
        weight=config(weight, per_channel=True),
        activation=config(activation),
        query=config(attention, per_channel=per_head),
        key=config(attention, per_channel=per_head),
        value=config(attention, per_channel=per_head),
        softmax=config(softmax, per_channel=per_head),
    )


def swap_linears(model, scheme):
    """Swap the remaining float linears, as prepare does."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(
                child, QuantModule
            ):
                cls = counterpart_class(QuantLinear, type(child))
                parent._modules[name] = cls.from_float(child, scheme=scheme)
    share_inputs(model)
    leave_fast_paths(model)
    return model


@torch.no_grad()
def calibrate(model, run):
    """Set every range from one call of ``run``."""
    for _, module in quant_modules(model):
        module.calibrate_weights()
    with observing(model):
        run(model)
    for _, quantizer in quantizers(model):
        quantizer.calibrate()


def fired(model, run):
    """Return how often each quantizer is called by ``run``."""
    counts = Counter()
    handles = [
        quantizer.register_forward_pre_hook(
            lambda *_, name=name: counts.update([name])
        )
        for name, quantizer in quantizers(model)
    ]
    run(model)
    for handle in handles:
        handle.remove()
    return dict(counts)


def load(model, state_dict):
    """Load a calibrated state and switch on; calibrating is over then."""
    for _, quantizer in quantizers(model):
        quantizer.observer = None
    model.load_state_dict(state_dict)
    enable(model)


@pytest.fixture(scope='session')
def lab():
    """The functions of this file."""
    return SimpleNamespace(
        scheme=make_scheme,
        swap_linears=swap_linears,
        calibrate=calibrate,
        fired=fired,
        load=load,
    )
