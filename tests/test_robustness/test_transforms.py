import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from PIL import Image

from taskptq.robustness.corruptions import corrupt, image_seed


@pytest.fixture
def results(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / 'a.png'
    image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(image[..., ::-1]).save(path)
    return {'img': image, 'img_path': str(path)}


def test_a_config_names_the_noises(results):
    pytest.importorskip('imagecorruptions')
    before = results['img'].copy()
    step = TRANSFORMS.build(
        dict(type='taskptq.ImageNoise', noises=['contrast=3'], seed=4)
    )
    found = step(results)['img']
    wanted = corrupt(
        np.ascontiguousarray(before[..., ::-1]),
        name='contrast',
        severity=3,
        seed=image_seed('a.png', noise='contrast=3', seed=4),
    )
    assert np.array_equal(found[..., ::-1], wanted)


def test_each_image_gets_one_of_the_noises(results):
    step = TRANSFORMS.build(
        dict(
            type='taskptq.ImageNoise',
            noises=['clean', 'crop=1', 'color=yuv444'],
            choose=True,
        )
    )
    seen = set()
    for number in range(24):
        item = {'img': results['img'].copy(), 'img_path': f'{number}.jpg'}
        seen.add(step(item)['img'].tobytes())
        again = {'img': results['img'].copy(), 'img_path': f'{number}.jpg'}
        assert step(again)['img'].tobytes() in seen
    assert len(seen) == 3


def test_a_resize_step_keeps_what_it_writes(results):
    resize = dict(type='mmcv.Resize', scale=(24, 20))
    plain = TRANSFORMS.build(resize)(dict(results))
    noisy = TRANSFORMS.build(
        dict(type='taskptq.NoisyResize', method='opencv-nearest', step=resize)
    )(dict(results))
    assert noisy['img'].shape == plain['img'].shape == (20, 24, 3)
    assert not np.array_equal(noisy['img'], plain['img'])
    assert noisy['scale_factor'] == plain['scale_factor']


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(type='taskptq.ImageNoise', noises=[]), 'noises is empty'),
        (
            dict(type='taskptq.ImageNoise', noises=['ceil_mode']),
            'ceil_mode does not act on an image',
        ),
        (
            dict(type='taskptq.NoisyResize', method='cubic', step=None),
            "no option 'cubic'",
        ),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(settings)


def test_a_resize_needs_an_image():
    step = TRANSFORMS.build(
        dict(
            type='taskptq.NoisyResize',
            method='opencv-area',
            step=dict(type='mmcv.Resize', scale=(4, 4)),
        )
    )
    with pytest.raises(KeyError, match='needs an image under'):
        step({})
