import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('IMG/val', 'GT/val'):
        (tmp_path / name).mkdir(parents=True)
    for number in range(2):
        image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        label = np.full((32, 32), 13 if number else 0, np.uint8)
        label[:8] = 5
        file = f'val_{number:04}.png'
        Image.fromarray(image).save(tmp_path / 'IMG/val' / file)
        # One label as the challenge has it, one of three channels.
        stored = label[..., None].repeat(3, 2) if number else label
        Image.fromarray(stored).save(tmp_path / 'GT/val' / file)
    return tmp_path


@pytest.fixture
def dataset(folder):
    from edge_challenge.dataset import LPCVCDataset

    return LPCVCDataset(
        data_root=str(folder),
        data_prefix=dict(img_path='IMG/val', seg_map_path='GT/val'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(16, 16), keep_ratio=True),
            dict(type='LoadLPCVCAnnotations'),
            dict(type='PackSegInputs'),
        ],
    )


def test_images_and_labels(dataset):
    assert len(dataset) == 2
    assert len(dataset.metainfo['classes']) == 14
    for number, rest in enumerate((0, 13)):
        sample = dataset[number]
        assert sample['inputs'].shape == (3, 16, 16)
        label = sample['data_samples'].gt_sem_seg.data
        assert label.shape == (1, 32, 32)
        assert label.unique().tolist() == sorted({5, rest})


def test_colored_labels_are_refused(dataset, folder):
    label = np.zeros((32, 32, 3), np.uint8)
    label[..., 1] = 7
    Image.fromarray(label).save(folder / 'GT/val/val_0000.png')
    with pytest.raises(ValueError, match='is a colored map'):
        dataset[0]
