import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')
pytest.importorskip('onnxruntime')

from mmengine.structures import BaseDataElement, InstanceData, PixelData

from taskptq.analysis.page.agreement import Agreement
from taskptq.engine.network_parts import NetworkParts
from taskptq.engine.onnx_decisions import (
    busiest_images,
    check_decisions,
    joined,
    refuse_others,
)
from taskptq.engine.onnx_export import export_parts
from taskptq.engine.onnx_metadata import OnnxMetadata
from taskptq.engine.raw_outputs import MAIN, image_axes, make_part
from taskptq.export.runtime import OnnxFileError
from taskptq.registry import NETWORK_PARTS


class Host(nn.Module):
    """A segmentor; a careless one looks at the images in Python."""

    def __init__(self, careless):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.careless = careless
        self.network = self.maps

    def maps(self, images):
        found = self.conv(images)
        if self.careless and float(images.mean()) < 0:
            found = -found
        return {'maps': found}

    def forward(self, inputs, data_samples, mode):
        maps = self.network(inputs)['maps']
        for sample, scores in zip(data_samples, maps, strict=True):
            data = scores.argmax(0, keepdim=True)
            sample.pred_sem_seg = PixelData(data=data)
        return data_samples


class HostParts(NetworkParts):
    def parts(self, data, *, dynamic=False):
        return [
            make_part(
                MAIN,
                self.model.maps,
                modules={'conv': self.model.conv},
                inputs={'images': data['inputs']},
                axes={'images': image_axes(dynamic=dynamic)},
            )
        ]

    def install(self, runs):
        self.model.network = runs[MAIN]


def batch(*, seed, shift, size=(8, 12), count=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, *size, generator=generator) + shift
    samples = [
        BaseDataElement(metainfo={'img_shape': size, 'ori_shape': size})
        for _ in range(count)
    ]
    return {'inputs': images, 'data_samples': samples}


@pytest.fixture
def exported(registry_guard, tmp_path):
    def make(*, careless):
        name = f'{Host.__module__}.{Host.__qualname__}'
        NETWORK_PARTS.register_module(name=name, module=HostParts, force=True)
        torch.manual_seed(0)
        model = Host(careless).eval()
        out = tmp_path / 'model.onnx'
        meta = OnnxMetadata(
            parts=[],
            export='',
            model='Host',
            recipe='float',
            digest='',
            target='onnxruntime',
            input_size=[8, 12],
        )
        data = batch(seed=0, shift=0.5, count=2)
        export_parts(model, data, out=out, meta=meta, opset=17)
        return model, out

    return make


BATCHES = [
    batch(seed=0, shift=0.5, count=2),
    batch(seed=1, shift=-3.0),
]


def test_a_network_of_tensors_decides_alike(exported):
    model, out = exported(careless=False)
    words = check_decisions(model, BATCHES, out=out, target='onnxruntime')
    same = '0.0% of the pixels have another class'
    assert words == f'image 1: {same}; image 2: {same}'
    assert out.exists()
    assert model.network == model.maps


def test_what_python_saw_of_the_example_is_refused(exported):
    model, out = exported(careless=True)
    with pytest.raises(OnnxFileError, match=r'image 1 of a batch .*traced'):
        check_decisions(model, BATCHES, out=out, target='openvino')
    assert not out.exists()


def test_one_image_is_compared_but_not_judged(exported):
    model, out = exported(careless=True)
    words = check_decisions(model, BATCHES[1:], out=out, target='onnxruntime')
    assert words.startswith('image 1: ')
    assert words != 'image 1: 0.0% of the pixels have another class'


def test_a_host_that_fails_by_itself_is_left_out(exported):
    model, out = exported(careless=False)
    model.conv.weight.data = model.conv.weight.data[:, :2]
    words = check_decisions(model, BATCHES, out=out, target='onnxruntime')
    assert words == 'not compared, since the host fails (RuntimeError)'


def objects(*, agree, lost):
    return Agreement(
        matched_boxes=[(i, i, 0.9) for i in range(agree)],
        lost_boxes=list(range(lost)),
        score=lost / (agree + lost),
    )


@pytest.mark.parametrize(
    ('example', 'other', 'refused'),
    [
        (objects(agree=9, lost=0), objects(agree=2, lost=8), True),
        # Where the example is a matter of chance, so are others.
        (objects(agree=5, lost=5), objects(agree=2, lost=8), False),
        (objects(agree=9, lost=0), objects(agree=6, lost=4), False),
        # Too few objects.
        (objects(agree=9, lost=0), objects(agree=1, lost=3), False),
        (
            Agreement(changed=np.zeros((2, 2), bool)),
            Agreement(changed=np.ones((2, 2), bool), score=1.0),
            True,
        ),
    ],
)
def test_most_decisions_have_to_change(example, other, refused):
    if not refused:
        refuse_others([example, other], out='m.onnx')
        return
    with pytest.raises(OnnxFileError, match='decides otherwise'):
        refuse_others([example, other], out='m.onnx')


class Finder(nn.Module):
    """Finds as many objects as the first pixel of an image says."""

    def forward(self, inputs, data_samples, mode):
        for sample, image in zip(data_samples, inputs, strict=True):
            count = int(image[0, 0, 0])
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor([[0.0, 0.0, 4.0, 4.0]] * count),
                scores=torch.ones(count),
                labels=torch.zeros(count),
            )
        return data_samples


@pytest.mark.parametrize(
    ('counts', 'chosen'),
    [
        ([[1, 3, 0]], [3, 1]),
        # The example was traced with all images of its batch.
        ([[1, 3, 2], [0, 1], [2, 1]], [3, 2]),
        # What one image is doubled to is no other image.
        ([[2, 2]], [2]),
        ([[0, 0], [0, 0]], [0]),
    ],
)
def test_images_with_most_objects_are_compared(counts, chosen):
    batches = []
    for found in counts:
        data = batch(seed=0, shift=0.0, count=len(found))
        data['inputs'][:] = torch.tensor(found)[:, None, None, None]
        batches.append(data)
    images = busiest_images(Finder(), batches)
    assert [int(one['inputs'][0, 0, 0, 0]) for one in images] == chosen
    assert all(len(one['data_samples']) == 1 for one in images)


def test_two_images_share_a_batch_and_the_second_is_padded():
    one = batch(seed=0, shift=0.0, size=(8, 12))
    two = batch(seed=1, shift=0.0, size=(16, 8))
    found = joined([one, two])
    assert found['inputs'].shape == (2, 3, 16, 12)
    assert [s.img_shape for s in found['data_samples']] == [(8, 12), (12, 8)]
    assert all(s.batch_input_shape == (16, 12) for s in found['data_samples'])
    assert not found['inputs'][1, :, 12:].any()
    assert not found['inputs'][1, :, :, 8:].any()
    assert two['data_samples'][0].img_shape == (16, 8)


def test_images_in_lists_are_not_padded():
    one, two = batch(seed=0, shift=0.0), batch(seed=1, shift=0.0)
    for data in (one, two):
        data['inputs'] = list(data['inputs'])
    found = joined([one, two])
    assert [tuple(x.shape) for x in found['inputs']] == [(3, 8, 12)] * 2
