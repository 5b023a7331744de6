"""A common view of the projections of all mapped attention classes.

Hosts have them as separate layers, as slices of one fused layer, or as bare
parameters. Rewrites and the analysis of keys read all of them as rows of a
weight and of a bias. Which class has which layout follows from its
counterpart, so ``hosts`` stays the only list of host names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from taskptq.hosts.class_lookup import counterpart_name
from taskptq.prepare.patterns import check_all_used, matches

PARTS = ('query', 'key', 'value')


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A linear map's parameters, or a slice of a fused one's.

    Args:
        weight: (C_out, C_in), sharing the parameter's memory: writing to it
            in place changes the model.
        bias: (C_out,), sharing the parameter's memory; None without a bias.
        layer: The child module that projects; None if the attention itself
            does, with bare parameters.
        rows: The layer's output channels that belong to this projection.
    """

    weight: Tensor
    bias: Tensor | None
    layer: nn.Module | None = None
    rows: slice = field(default_factory=lambda: slice(None))


@dataclass(frozen=True, kw_only=True)
class AttentionView:
    """An attention: ``out(softmax(q k^T + ...) v)``, channels head by head.

    Args:
        name: Qualified name.
        module: The attention.
        num_heads: Heads.
        query: Projection to queries.
        key: Projection to keys; of their content only, if positions are
            projected separately.
        key_position: Projection of the keys' positions, None without one.
        value: Projection to values.
        out: Projection of the heads' outputs.
        extra_keys: Whether a learned or a zero token joins the keys and
            values after their projection.
        query_positions: Whether relative positions are computed from the
            projected query.
        query_parts: Further projections that are added to the queries or
            stand beside them in the product with the keys.
        position_tables: (offsets, C / num_heads), multiplied by queries.
    """

    name: str
    module: nn.Module
    num_heads: int
    query: Projection
    key: Projection
    value: Projection
    out: Projection
    key_position: Projection | None = None
    extra_keys: bool = False
    query_positions: bool = False
    query_parts: tuple[Projection, ...] = ()
    position_tables: tuple[Tensor, ...] = ()

    def part(self, name: str) -> Projection | None:
        """Return the projection with that name, None if it doesn't exist."""
        projection: Projection | None = getattr(self, name)
        return projection


def _of_layer(layer: nn.Linear) -> Projection:
    return _slice(layer.weight, layer.bias, layer=layer)


def _slice(
    weight: Tensor,
    bias: Tensor | None,
    *,
    rows: slice = slice(None),
    layer: nn.Module | None = None,
) -> Projection:
    return Projection(
        weight=weight.detach()[rows],
        bias=None if bias is None else bias.detach()[rows],
        layer=layer,
        rows=rows,
    )


def _thirds(
    weight: Tensor, bias: Tensor | None, *, layer: nn.Module | None = None
) -> tuple[Projection, Projection, Projection]:
    """Split a fused projection into those of q, k and v."""
    size = weight.shape[0] // 3
    q, k, v = (
        _slice(
            weight,
            bias,
            rows=slice(i * size, (i + 1) * size),
            layer=layer,
        )
        for i in range(3)
    )
    return q, k, v


def _fused_layer(name: str, module: nn.Module) -> AttentionView:
    """View ``qkv`` and ``proj``: Swin's windows, SAM's image encoder."""
    qkv, proj = _linears(module, 'qkv', 'proj')
    q, k, v = _thirds(qkv.weight, qkv.bias, layer=qkv)
    uses_tables = bool(getattr(module, 'use_rel_pos', False))
    tables = ('rel_pos_h', 'rel_pos_w') if uses_tables else ()
    return AttentionView(
        name=name,
        module=module,
        num_heads=_num_heads(module),
        query=q,
        key=k,
        value=v,
        out=_of_layer(proj),
        query_positions=uses_tables,
        position_tables=tuple(
            getattr(module, table).detach() for table in tables
        ),
    )


def _separate_layers(name: str, module: nn.Module) -> AttentionView:
    """View ``q_proj`` ... ``out_proj``: SAM's mask decoder."""
    q, k, v, out = (
        _of_layer(layer)
        for layer in _linears(module, 'q_proj', 'k_proj', 'v_proj', 'out_proj')
    )
    return AttentionView(
        name=name,
        module=module,
        num_heads=_num_heads(module),
        query=q,
        key=k,
        value=v,
        out=out,
    )


def _content_and_position(name: str, module: nn.Module) -> AttentionView:
    """View the decoders of Conditional and DAB-DETR.

    Keys are the sum or the concatenation of both projections: either way, a
    constant added to one of them is added to every key.
    """
    q, k, v, out, position = (
        _of_layer(layer)
        for layer in _linears(
            module,
            'qcontent_proj',
            'kcontent_proj',
            'v_proj',
            'out_proj',
            'kpos_proj',
        )
    )
    # Which of them exist depends on the layer and on the kind of attention.
    others = [
        child
        for part in ('qpos_proj', 'qpos_sine_proj')
        if (child := getattr(module, part, None)) is not None
    ]
    return AttentionView(
        name=name,
        module=module,
        num_heads=_num_heads(module),
        query=q,
        key=k,
        value=v,
        out=out,
        key_position=position,
        query_parts=tuple(_of_layer(layer) for layer in others),
    )


def _bare_parameters(name: str, module: nn.Module) -> AttentionView:
    """View nn.MultiheadAttention, its input projection fused or not."""
    assert isinstance(module, nn.MultiheadAttention)
    (out,) = _linears(module, 'out_proj')
    bias = module.in_proj_bias
    # None if the projections are not fused, despite its annotation.
    fused = module._parameters['in_proj_weight']
    if fused is not None:
        q, k, v = _thirds(fused, bias)
    else:
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        q, k, v = (
            _slice(getattr(module, f'{part[0]}_proj_weight'), part_bias)
            for part, part_bias in zip(PARTS, biases, strict=True)
        )
    return AttentionView(
        name=name,
        module=module,
        num_heads=module.num_heads,
        query=q,
        key=k,
        value=v,
        out=_of_layer(out),
        extra_keys=module.bias_k is not None or module.add_zero_attn,
    )


def _linears(module: nn.Module, *names: str) -> list[nn.Linear]:
    """Return children that must be linear layers.

    Raises:
        TypeError: If one isn't, e.g. because an adapter wraps it.
    """
    found = []
    for name in names:
        child = getattr(module, name)
        if not isinstance(child, nn.Linear):
            raise TypeError(
                f'{name} is a {type(child).__name__}, not a linear layer'
            )
        found.append(child)
    return found


def _num_heads(module: nn.Module) -> int:
    heads = module.num_heads
    assert isinstance(heads, int)
    return heads


# Counterpart's name -> layout.
_LAYOUTS: dict[str, Callable[[str, nn.Module], AttentionView]] = {
    'QuantMultiheadAttention': _bare_parameters,
    'QuantWindowMSA': _fused_layer,
    'QuantSamEncoderAttention': _fused_layer,
    'QuantSamDecoderAttention': _separate_layers,
    'QuantConditionalAttention': _content_and_position,
}


def attention_views(
    model: nn.Module,
) -> tuple[list[AttentionView], dict[str, str]]:
    """View the projections of all attentions of a float model.

    Args:
        model: Float model, before it is prepared.

    Returns:
        The views in the order of the modules, and by qualified name the
        reasons why other mapped attentions have none.
    """
    views: list[AttentionView] = []
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        counterpart = counterpart_name(module)
        layout = _LAYOUTS.get(counterpart)
        if layout is None:
            if 'Attention' in counterpart:
                skipped[name] = (
                    f'{type(module).__name__} has no projection to keys'
                )
            continue
        try:
            views.append(layout(name, module))
        except TypeError as error:
            skipped[name] = str(error)
    return views, skipped


def select_views(
    model: nn.Module, *, patterns: Iterable[str] | None, argument: str
) -> tuple[list[AttentionView], dict[str, str]]:
    """Return the views and reasons of attentions whose names match.

    Args:
        model: Float model.
        patterns: Name patterns as in a QConfig; None is every attention.
        argument: Name of the argument ``patterns``, for errors.

    Raises:
        ValueError: If the model has no attention, or a pattern matches none.
    """
    views, skipped = attention_views(model)
    names = [view.name for view in views] + list(skipped)
    if not names:
        raise ValueError(
            f'{argument}: {type(model).__name__} has no attention with a '
            'known layout: remove the rewrite, or run it before the model is '
            'quantized'
        )
    if patterns is None:
        return views, skipped
    patterns = list(patterns)
    check_all_used(patterns, names, argument=argument)

    def chosen(name: str) -> bool:
        return any(matches(name, pattern) for pattern in patterns)

    return (
        [view for view in views if chosen(view.name)],
        {name: why for name, why in skipped.items() if chosen(name)},
    )
