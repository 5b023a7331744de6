"""Network parts of two-stage detectors: before and after the proposals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import MMLogger
from torch import Tensor, nn

from taskptq.engine.dense_parts import (
    feature_modules,
    in_order,
    named_outputs,
)
from taskptq.engine.module_calls import tensors_of
from taskptq.engine.network_parts import (
    NetworkParts,
    host_class,
    replace_forward,
    with_parameters,
)
from taskptq.engine.observed_layers import ObservedLayers, observe_layers
from taskptq.engine.raw_outputs import (
    MAIN,
    OUTPUT,
    Part,
    Run,
    image_axes,
    make_part,
    module_part,
    nested,
    one_output,
)
from taskptq.export.errors import OnnxFileError
from taskptq.registry import NETWORK_PARTS

__all__ = ['TwoStageParts']

FEATURES, PROPOSALS = 'features', 'rpn'
RPN = 'rpn_head'
# Children that are cut in another way than by their calls.
APART = ('backbone', 'neck', RPN, 'roi_head', 'data_preprocessor')


@NETWORK_PARTS.register_module(
    name='mmdet.models.detectors.two_stage.TwoStageDetector'
)
class TwoStageParts(NetworkParts):
    """Two-stage detectors.

    The main part computes the features, the raw outputs of the RPN, and those
    of all layers that take features and nothing else. Each other layer of the
    RoI head that has weights is a part on given RoI features; so is each of
    an RPN that selects proposals in several steps. Selecting proposals,
    pooling RoI features, NMS and pasting masks stay the host's.
    """

    def _rpn(self) -> nn.Module | None:
        """Return the RPN, if it runs as a whole before any proposal."""
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

        rpn = getattr(self.model, RPN, None)
        if rpn is None:
            return None
        plain = host_class(rpn).predict is BaseDenseHead.predict
        return rpn if plain else None

    def _layers(self) -> dict[str, nn.Module]:
        """Return what runs behind the features, by name."""
        model = self.model
        found = dict(with_parameters(model.roi_head, prefix='roi_head'))
        if self._rpn() is None and getattr(model, RPN, None) is not None:
            found |= dict(with_parameters(model.rpn_head, prefix=RPN))
        for name, child in model.named_children():
            if (
                name not in APART
                and next(child.parameters(), None) is not None
            ):
                found[name] = child
        return found

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return backbone, neck and RPN; then each layer of the RoI head."""
        layers = self._layers()
        seen = self._observed(data, layers)
        called = [name for name in layers if name in seen.calls]
        inside = [name for name in called if seen.on_features(name)]
        outside = [name for name in called if name not in inside]
        for name in outside:
            if dynamic and seen.takes_maps(name):
                raise OnnxFileError(
                    f'{name} takes maps whose size cannot be free: export '
                    'with a fixed --size'
                )
        return [
            self._main(data, seen, inside=inside, dynamic=dynamic),
            *(
                module_part(
                    name, layers[name], call=seen.calls[name], label='rois'
                )
                for name in outside
            ),
        ]

    def _main(
        self,
        data: Mapping[str, Any],
        seen: ObservedLayers,
        *,
        inside: list[str],
        dynamic: bool,
    ) -> Part:
        """Return the part that takes the images."""
        model, rpn, layers = self.model, self._rpn(), self._layers()
        weights = dict(model.named_parameters())

        def forward(images: Tensor) -> dict[str, Any]:
            feats = model.extract_feat(images)
            outputs: dict[str, Any] = {FEATURES: list(feats)}
            if rpn is not None:
                outputs[PROPOSALS] = named_outputs(rpn, rpn.forward(feats))
            for name in inside:
                outputs[name] = seen.run_on(name, layers[name], tuple(feats))
            return outputs | {name: weights[name] for name in seen.weights}

        modules = feature_modules(model)
        if rpn is not None:
            modules[RPN] = rpn
        return make_part(
            MAIN,
            forward,
            modules={
                **modules,
                **{name: layers[name] for name in inside},
                **{name: weights[name] for name in seen.weights},
            },
            inputs={'images': data['inputs']},
            axes={'images': image_axes(dynamic=dynamic)},
        )

    def _observed(
        self, data: Mapping[str, Any], layers: Mapping[str, nn.Module]
    ) -> ObservedLayers:
        """Let the model predict, and see how it calls its layers.

        Raises:
            ValueError: If the RPN takes other maps than the features.
        """
        model, rpn = self.model, self._rpn()
        seen = observe_layers(
            model,
            layers if rpn is None else {RPN: rpn, **layers},
            lambda: model.predict(data['inputs'], data['data_samples']),
        )
        if RPN in seen.calls and not seen.on_features(RPN):
            raise ValueError(
                f'{RPN} ({type(rpn).__name__}) takes other maps than those of '
                f'extract_feat(): register NetworkParts for '
                f'{type(model).__name__} (taskptq.registry.NETWORK_PARTS)'
            )
        if seen.unused:
            MMLogger.get_current_instance().warning(
                f'{", ".join(seen.unused)}: no use of these layers was seen '
                'on the example images, so they are not in the file.'
            )
        return seen

    def install(self, runs: Mapping[str, Run]) -> None:
        """Compute features, RPN and RoI layers in the runtime."""
        layers, model, rpn = self._layers(), self.model, self._rpn()
        self.check_names(
            {n: r for n, r in runs.items() if n not in layers}, [MAIN]
        )
        raw: dict[str, Tensor] = {}
        weights = dict(model.named_parameters())

        def extract_feat(images: Tensor) -> tuple[Tensor, ...]:
            raw.clear()
            raw.update(runs[MAIN](images))
            for name in raw.keys() & weights.keys():
                weights[name].data.copy_(raw[name])
            return tuple(nested(_below(raw, FEATURES)))

        model.extract_feat = extract_feat
        if rpn is not None:
            replace_forward(
                rpn, lambda feats: in_order(rpn, _below(raw, PROPOSALS))
            )
        for name, layer in layers.items():
            if name in runs:
                replace_forward(layer, _layer(runs[name]))
            else:
                replace_forward(layer, _from_main(raw, name, type(model)))


def _below(outputs: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """Return the outputs of a group, named within it."""
    return {
        name.removeprefix(f'{group}.'): tensor
        for name, tensor in outputs.items()
        if name.startswith(f'{group}.')
    }


def _layer(run: Run) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return one_output(run(*tensors_of([args, kwargs])))

    return forward


def _from_main(raw: Mapping[str, Tensor], name: str, owner: type) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        found = {
            f'{OUTPUT}{key.removeprefix(name)}': tensor
            for key, tensor in raw.items()
            if key == name or key.startswith(f'{name}.')
        }
        if not found:
            raise ValueError(
                f'the file has no {name}: check that config and file belong '
                f'together, or register NetworkParts for {owner.__name__}'
            )
        return one_output(found)

    return forward
