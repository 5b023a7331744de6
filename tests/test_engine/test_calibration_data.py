"""The choice of calibration images, and what is refused."""

import pytest
import torch

from taskptq.engine import calibration_data
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    EvaluationSource,
    build_calibration,
)


@pytest.fixture
def source(tiny_config):
    return EvaluationSource.from_config(tiny_config.test_dataloader)


@pytest.fixture
def build(tiny_config, source):

    def make(**settings):
        return build_calibration(
            CalibrationConfig.from_dict(settings),
            source=source,
            default=tiny_config.train_dataloader.dataset,
        )

    return make


def images_of(batches):
    return [
        batches.datasets[part].get_data_info(index)['img_path']
        for part, index in batches.chosen
    ]


def test_draws_without_replacement_and_by_seed(build):
    batches = build(num_images=20, batch_size=8)
    assert len(set(images_of(batches))) == 20
    assert images_of(build(num_images=20)) == images_of(batches)
    assert images_of(build(num_images=20, seed=3)) != images_of(batches)


def test_batches_are_collated_and_reread_alike(build):
    batches = build(num_images=10, batch_size=4)
    assert [len(batch['inputs']) for batch in batches] == [4, 4, 2]
    assert torch.equal(batches[1]['inputs'][0], batches[-2]['inputs'][0])
    with pytest.raises(IndexError):
        batches[3]


def test_batch_size_of_the_evaluation_is_the_default(build):
    assert build(num_images=10).batch_size == 4


def test_labels_stay_unread(build):
    assert set(build(num_images=8)[0]['labels']) == {-1}


def test_labels_are_read_where_the_pipeline_needs_them(
    tiny_config, build, source
):
    source.dataset.pipeline.transforms[-1].needs_labels = True
    assert -1 not in build(num_images=8)[0]['labels']


def test_repeated_images_count_once(build):
    with pytest.raises(ValueError, match=r'is 25, but .* has 24 images'):
        build(num_images=25)


def test_ranks_share_what_one_process_would_use(build, monkeypatch):
    whole = images_of(build(num_images=9))
    shares = []
    for rank in range(2):
        monkeypatch.setattr(
            calibration_data, 'get_dist_info', lambda rank=rank: (rank, 2)
        )
        shares.append(images_of(build(num_images=9)))
    assert [len(share) for share in shares] == [5, 4]
    assert shares[0] == whole[0::2]
    assert shares[1] == whole[1::2]


def test_filter_cfg_is_respected(build):
    dataset = dict(
        type='TinyDataset',
        first=300,
        length=6,
        empty=2,
        filter_cfg=dict(filter_empty=True),
        pipeline=[],
    )
    with pytest.raises(ValueError, match='has 4 images'):
        build(num_images=5, dataset=dataset)


def test_empty_set_is_refused(build):
    dataset = dict(
        type='TinyDataset',
        first=300,
        length=2,
        empty=2,
        filter_cfg=dict(filter_empty=True),
        pipeline=[],
    )
    with pytest.raises(ValueError, match='empty'):
        build(num_images=1, dataset=dataset)


def test_overlap_is_refused_unless_allowed(build):
    dataset = dict(type='TinyDataset', first=6, length=30, pipeline=[])
    with pytest.raises(ValueError, match=r'^2 calibration images'):
        build(num_images=4, dataset=dataset)
    assert len(build(num_images=4, dataset=dataset, allow_overlap=True))


def test_overlap_sees_through_links(build, tmp_path, source, monkeypatch):
    (tmp_path / 'tiny').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'tiny')
    monkeypatch.chdir(tmp_path)
    dataset = dict(
        type='TinyDataset', length=30, pipeline=[], serialize_data=False
    )
    from mmengine.registry import DATASETS

    built = DATASETS.build(dataset)
    for info in built.data_list:
        info['img_path'] = info['img_path'].replace('tiny/', 'link/')
    with pytest.raises(ValueError, match=r'^8 calibration images'):
        build(num_images=4, dataset=built)


def test_tta_pipeline_needs_another(tiny_config, source, build):

    class TestTimeAug:
        def __call__(self, results):
            return results

    plain = source.dataset.pipeline.transforms[:]
    source.dataset.pipeline.transforms[:] = [TestTimeAug()]
    with pytest.raises(ValueError, match=r'calibration\.pipeline'):
        build(num_images=4)
    assert len(build(num_images=4, pipeline=plain)) == 1


def test_no_training_set(source):
    with pytest.raises(ValueError, match=r'calibration\.dataset'):
        build_calibration(CalibrationConfig(), source=source)


def test_noise_changes_calibration_images_alone(tmp_path):
    from noisy_task import draw_files

    draw_files(tmp_path / 'test')
    draw_files(tmp_path / 'train')
    steps = [
        dict(type='mmcv.LoadImageFromFile'),
        dict(type='mmcv.Resize', scale=(24, 20)),
        dict(type='DrawnPack'),
    ]
    test, train = (
        dict(
            type='DrawnDataset',
            data_root=str(tmp_path / name),
            test_mode=True,
            pipeline=steps,
        )
        for name in ('test', 'train')
    )
    source = EvaluationSource.from_config({'dataset': test})

    def images(**settings):
        config = CalibrationConfig.from_dict({'num_images': 5, **settings})
        batches = build_calibration(config, source=source, default=train)
        return [batch['inputs'][0] for batch in batches]

    clean = images()
    noisy = images(noise=['color=nv12', 'resize=opencv-nearest'])
    assert not any(map(torch.equal, clean, noisy))
    mixed = images(noise=['clean', 'crop=1'])
    assert 0 < sum(map(torch.equal, clean, mixed)) < 5
    assert all(map(torch.equal, clean, images(noise=['clean'])))
    again = images(noise=['color=nv12', 'resize=opencv-nearest'])
    assert all(map(torch.equal, noisy, again))
    tested = EvaluationSource.from_config({'dataset': test})
    assert type(tested.dataset.pipeline).__name__ == 'Compose'
