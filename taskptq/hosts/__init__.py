"""Which classes of other packages are quantized, and how; register your own.

================================ ============================================
``register_counterpart``         class that replaces a layer or an attention
``register_block``               reconstruction block
``register_output_layer``        last layers of heads (``edge_bits``)
``register_output_sequence``     sequences whose last layer is such a layer
``register_position_layer``      projections of positions for an attention
``register_float``               class that stays float, with the reason
``register_conv_norm``           class whose norms are folded into its convs
``register_norm``                norm that is a BatchNorm in eval mode
``register_computed_weight``     layer that computes its weight at each call
``register_rows``                unit whose inputs hold independent rows
``register_replayed_input``      input that selects rows, such as boxes
``register_training_only``       parts that evaluation never calls
================================ ============================================

A host is a class or its dotted name; a package that is not installed is not
mapped. Register in the module that defines the class, so that whoever builds
a model has registered its parts::

    from taskptq.hosts import register_block, register_counterpart

    register_counterpart(MyAttention, QuantMyAttention)
    register_block(MyEncoderLayer)
"""

# Each of these registers what one package needs.
from taskptq.hosts import (  # noqa: F401
    mmcv,
    mmdet,
    mmseg,
    segment_anything,
    tiny_models,
    torch,
)
from taskptq.hosts.class_lookup import layer_patterns, lookup
from taskptq.hosts.registry import (
    host_name,
    register_block,
    register_computed_weight,
    register_conv_norm,
    register_counterpart,
    register_float,
    register_norm,
    register_output_layer,
    register_output_sequence,
    register_position_layer,
    register_replayed_input,
    register_rows,
    register_training_only,
)

__all__ = [
    'host_name',
    'layer_patterns',
    'lookup',
    'register_block',
    'register_computed_weight',
    'register_conv_norm',
    'register_counterpart',
    'register_float',
    'register_norm',
    'register_output_layer',
    'register_output_sequence',
    'register_position_layer',
    'register_replayed_input',
    'register_rows',
    'register_training_only',
]
