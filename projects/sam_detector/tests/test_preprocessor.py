import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from segment_anything.modeling import Sam

from sam_detector.preprocessor import SAMDataPreprocessor

SIZES = [(64, 64), (40, 64), (64, 33), (1, 1)]


def build(**options):
    model = MODELS.build(
        {'type': 'SAMDataPreprocessor', 'image_size': 64, **options}
    )
    assert isinstance(model, SAMDataPreprocessor)
    return model


def sample(sizes, **metainfo):
    return DetDataSample(metainfo={'sam_view_sizes': sizes, **metainfo})


def views(count):
    return torch.randint(256, (count, 3, 64, 64), dtype=torch.uint8)


def test_equals_segment_anything(sam_config):
    """Padding is zero after the normalization, not before."""
    sam = MODELS.build(sam_config)
    own = Sam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder)
    packed = views(4)
    before = packed.clone()
    found = build()(
        {
            'inputs': {'sam': [packed[:1], packed[1:]]},
            'data_samples': [sample(SIZES[:1]), sample(SIZES[1:])],
        }
    )['inputs']['sam']
    assert [len(part) for part in found] == [1, 3]
    for view, size, result in zip(
        packed, SIZES, torch.cat(found), strict=True
    ):
        height, width = size
        expected = own.preprocess(view[:, :height, :width].float())
        assert torch.equal(result, expected)
        assert (result[:, height:] == 0).all()
        assert (result[:, :, width:] == 0).all()
    assert torch.equal(packed, before)


def test_without_data_samples_all_is_image():
    packed, model = views(2), build()
    batch = model({'inputs': {'sam': [packed]}})
    assert batch['data_samples'] is None
    assert list(batch['inputs']) == ['sam']
    expected = (packed.float() - model.mean) / model.std
    assert torch.equal(batch['inputs']['sam'][0], expected)
    again = model(
        {'inputs': {'sam': [packed]}, 'data_samples': [DetDataSample()]}
    )
    assert torch.equal(again['inputs']['sam'][0], expected)


def test_statistics_may_be_others():
    model = build(mean=(0.0, 0.0, 0.0), std=(1.0, 2.0, 4.0))
    packed = torch.full((1, 3, 64, 64), 8, dtype=torch.uint8)
    found = model({'inputs': {'sam': [packed]}})['inputs']['sam'][0]
    assert found[0, :, 0, 0].tolist() == [8.0, 4.0, 2.0]
    assert list(model.state_dict()) == []


def test_the_detector_has_its_own():
    model = build(
        detector={
            'type': 'DetDataPreprocessor',
            'mean': [1.0, 2.0, 3.0],
            'std': [1.0, 1.0, 1.0],
            'bgr_to_rgb': True,
            'pad_size_divisor': 32,
        }
    )
    images = [
        torch.full((3, 20, 30), 7, dtype=torch.uint8),
        torch.full((3, 40, 10), 9, dtype=torch.uint8),
    ]
    samples = [
        sample(SIZES[:1], img_shape=image.shape[1:]) for image in images
    ]
    batch = model(
        {
            'inputs': {'sam': [views(1), views(1)], 'img': images},
            'data_samples': samples,
        }
    )
    assert batch['inputs']['img'].shape == (2, 3, 64, 32)
    assert batch['inputs']['img'][1, :, 0, 0].tolist() == [8.0, 7.0, 6.0]
    assert batch['data_samples'][0].batch_input_shape == (64, 32)
    # Images alone, as SAM is trained.
    batch = model({'inputs': {'sam': [views(1)]}, 'data_samples': samples[:1]})
    assert list(batch['inputs']) == ['sam']


def test_an_image_without_a_detector_is_left_out():
    batch = build()(
        {
            'inputs': {'sam': [views(1)], 'img': [views(1)[0]]},
            'data_samples': [sample(SIZES[:1])],
        }
    )
    assert list(batch['inputs']) == ['sam']


def test_what_does_not_fit_is_refused():
    data = {'inputs': {'sam': [views(1)]}, 'data_samples': [sample(SIZES[:1])]}
    with pytest.raises(
        ValueError,
        match=r'\(1, 3, 64, 64\), but image_size='
        '32.* the same',
    ):
        build(image_size=32)(data)
    data['data_samples'] = [sample(SIZES[:2])]
    with pytest.raises(ValueError, match='has 2 rows for 1 views: leave it'):
        build()(data)
