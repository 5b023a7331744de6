"""Network parts of two-stage detectors: before and after the proposals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from taskptq.engine.dense_parts import (
    feature_modules,
    in_order,
    named_outputs,
)
from taskptq.engine.network_parts import (
    NetworkParts,
    capture_calls,
    host_class,
    replace_forward,
    with_parameters,
)
from taskptq.engine.raw_outputs import (
    MAIN,
    Part,
    Run,
    image_axes,
    make_part,
    module_part,
    nested,
    one_output,
)
from taskptq.registry import NETWORK_PARTS

__all__ = ['TwoStageParts']

FEATURES, PROPOSALS = 'features', 'rpn'


@NETWORK_PARTS.register_module(
    name='mmdet.models.detectors.two_stage.TwoStageDetector'
)
class TwoStageParts(NetworkParts):
    """Two-stage detectors.

    The main part computes features and the raw outputs of the RPN; each layer
    of the RoI head that has weights is a part on given RoI features. Selecting
    proposals, pooling RoI features, NMS and pasting masks stay the host's.
    """

    def _check(self) -> None:
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.detectors import TwoStageDetector

        self.refuse_overridden(TwoStageDetector, 'predict')
        rpn = getattr(self.model, 'rpn_head', None)
        if (
            rpn is not None
            and host_class(rpn).predict is not BaseDenseHead.predict
        ):
            raise ValueError(
                f'rpn_head ({type(rpn).__name__}) has a predict() of its own, '
                'which selects proposals in several steps: register '
                f'NetworkParts for {type(self.model).__name__}'
            )

    def _roi_layers(self) -> dict[str, nn.Module]:
        return dict(with_parameters(self.model.roi_head, prefix='roi_head'))

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return backbone, neck and RPN; then each layer of the RoI head."""
        self._check()
        model = self.model
        rpn = getattr(model, 'rpn_head', None)

        def forward(images: Tensor) -> dict[str, Any]:
            feats = model.extract_feat(images)
            outputs = {FEATURES: list(feats)}
            if rpn is not None:
                outputs[PROPOSALS] = named_outputs(rpn, rpn.forward(feats))
            return outputs

        modules = feature_modules(model)
        if rpn is not None:
            modules['rpn_head'] = rpn
        layers = self._roi_layers()
        calls = capture_calls(
            layers,
            lambda: model.predict(data['inputs'], data['data_samples']),
        )
        return [
            make_part(
                MAIN,
                forward,
                modules=modules,
                inputs={'images': data['inputs']},
                axes={'images': image_axes(dynamic=dynamic)},
            ),
            *(
                module_part(name, layer, args=calls.get(name), label='rois')
                for name, layer in layers.items()
            ),
        ]

    def install(self, runs: Mapping[str, Run]) -> None:
        """Compute features, RPN and RoI layers in the runtime."""
        self._check()
        layers = self._roi_layers()
        self.check_names(runs, [MAIN, *layers])
        rpn = getattr(self.model, 'rpn_head', None)
        raw: dict[str, Tensor] = {}

        def extract_feat(images: Tensor) -> tuple[Tensor, ...]:
            raw.clear()
            raw.update(runs[MAIN](images))
            return tuple(nested(_below(raw, FEATURES)))

        self.model.extract_feat = extract_feat
        if rpn is not None:
            replace_forward(
                rpn, lambda feats: in_order(rpn, _below(raw, PROPOSALS))
            )
        for name, layer in layers.items():
            replace_forward(layer, _layer(runs[name]))


def _below(outputs: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """Return the outputs of a group, named within it."""
    return {
        name.removeprefix(f'{group}.'): tensor
        for name, tensor in outputs.items()
        if name.startswith(f'{group}.')
    }


def _layer(run: Run) -> Any:
    def forward(*tensors: Tensor) -> Any:
        return one_output(run(*tensors))

    return forward
