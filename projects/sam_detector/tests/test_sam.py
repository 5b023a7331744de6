import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import HistoryBuffer
from segment_anything.modeling import Sam

from sam_detector.prompts import Prompts
from sam_detector.sam import (
    SAM_SIZES,
    PromptedSAM,
    SAMSize,
    build_encoder,
    read_sam_file,
)

BOXES = torch.tensor(
    [
        [4.0, 4, 30, 20],
        [10, 8, 60, 50],
        [0, 0, 64, 64],
        [33, 40, 40, 47],
        [1, 30, 20, 63],
    ]
)
POINTS = torch.rand(5, 2, 2, generator=torch.Generator().manual_seed(0)) * 64
LABELS = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
KINDS = {
    'boxes': Prompts(boxes=BOXES),
    'points': Prompts(points=POINTS, labels=LABELS),
    'both': Prompts(boxes=BOXES, points=POINTS, labels=LABELS),
}


def build(sam_config, **options):
    return MODELS.build({**sam_config, **options}).eval()


@pytest.mark.parametrize('kind', list(KINDS))
@pytest.mark.parametrize('several', [True, False])
@torch.no_grad()
def test_outputs_are_those_of_segment_anything(sam_config, kind, several):
    sam, prompts = build(sam_config), KINDS[kind]
    own = Sam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder)
    image = torch.rand(3, 64, 64) * 255
    record = {'image': image, 'original_size': (64, 64)}
    if prompts.boxes is not None:
        record['boxes'] = prompts.boxes
    if prompts.points is not None:
        record |= {
            'point_coords': prompts.points,
            'point_labels': prompts.labels,
        }
    expected = own([record], several)[0]
    view = (image - sam.pixel_mean) / sam.pixel_std
    logits, iou = sam.decode(
        sam.encode(view[None]), prompts, multimask_output=several
    )
    assert logits.shape == (5, 3 if several else 1, 16, 16)
    torch.testing.assert_close(logits, expected['low_res_logits'])
    torch.testing.assert_close(iou, expected['iou_predictions'])


@pytest.mark.parametrize('kind', list(KINDS))
@pytest.mark.parametrize('step', [1, 2, 5])
@torch.no_grad()
def test_prompts_in_batches_give_the_same(sam_config, monkeypatch, kind, step):
    sam = build(sam_config, box_mask_prompt=True)
    embedding = torch.randn(1, 16, 4, 4)
    whole = sam.decode(embedding, KINDS[kind], multimask_output=True)
    sam.prompts_per_batch = step
    seen, before = [], sam.mask_decoder.forward

    def forward(**inputs):
        seen.append(len(inputs['sparse_prompt_embeddings']))
        return before(**inputs)

    monkeypatch.setattr(sam.mask_decoder, 'forward', forward)
    parts = sam.decode(embedding, KINDS[kind], multimask_output=True)
    assert max(seen) == step
    assert sum(seen) == 5
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize('patch', [8, 16])
@pytest.mark.parametrize('several', [True, False])
@torch.no_grad()
def test_no_prompts(sam_config, several, patch):
    sam = build(sam_config, patch_size=patch, box_mask_prompt=True)
    embedding = sam.encode(torch.randn(1, 3, 64, 64))
    some = sam.decode(embedding, KINDS['boxes'], multimask_output=several)
    none = sam.decode(embedding, KINDS['boxes'][:0], multimask_output=several)
    for full, empty in zip(some, none, strict=True):
        assert empty.shape == (0, *full.shape[1:])
        assert empty.dtype == full.dtype


@torch.no_grad()
def test_a_box_may_also_be_a_mask_prompt(sam_config):
    sam = build(sam_config)
    _, without = sam.embed_prompts(KINDS['boxes'])
    assert (
        without == sam.prompt_encoder.no_mask_embed.weight.view(1, 16, 1, 1)
    ).all()
    sam.box_mask_prompt = True
    _, dense = sam.embed_prompts(KINDS['boxes'])
    assert dense.shape == without.shape == (5, 16, 4, 4)
    assert not torch.allclose(dense[0], dense[1])
    _, of_points = sam.embed_prompts(KINDS['points'])
    assert torch.equal(of_points, without)


def test_views_are_embedded_one_by_one(sam_config):
    sam = build(sam_config)
    views = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        found = sam.encode(views)
        single = sam.encode(views[1:2])
    assert found.shape == (3, 16, 4, 4)
    torch.testing.assert_close(found[1:2], single)


def test_pixel_statistics_are_the_official_ones(sam_config):
    sam = build(sam_config)
    own = Sam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder)
    assert torch.equal(sam.pixel_mean, own.pixel_mean)
    assert torch.equal(sam.pixel_std, own.pixel_std)
    assert sam.image_size == 64
    assert not any(key.startswith('pixel_') for key in sam.state_dict())


def test_tiny_is_small_and_starts_with_positions():
    sam = PromptedSAM('tiny')
    count = sum(p.numel() for p in sam.parameters())
    assert 1.5e6 < count < 2.5e6
    table = sam.image_encoder.pos_embed
    assert 0.01 < table.std() < 0.03
    windows = [block.window_size for block in sam.image_encoder.blocks]
    assert windows == [8, 8, 0, 8, 8, 0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'size': 'vit_g'}, "size='vit_g' is unknown: choose one of vit_b"),
        ({'prompts_per_batch': 0}, 'prompts_per_batch=0 must be at least 1'),
        (
            {'dept': 3},
            r'dept=3 is not a setting of SAM: choose from embed_dim',
        ),
        (
            {'depth': 0, 'global_blocks': ()},
            'depth=0 of SAM must be at least 1',
        ),
        ({'window_size': -1}, 'window_size=-1 of SAM must be at least 0'),
        ({'image_size': 100}, 'image_size=100 .* multiple of patch_size=16'),
        ({'num_heads': 3}, 'embed_dim=128 .* multiple of num_heads=3'),
        ({'depth': 4}, r'global_blocks=\(2, 5\) .* depth=4 blocks: give both'),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PromptedSAM(**{'size': 'tiny', **options})


def test_windows_may_be_switched_off(sam_config):
    sam = build(sam_config, window_size=0, global_blocks=[])
    assert sam.size == SAMSize(
        **{
            key: value
            for key, value in sam_config.items()
            if key not in ('type', 'size', 'window_size', 'global_blocks')
        },
        window_size=0,
        global_blocks=[],
    )
    with torch.no_grad():
        assert sam.encode(torch.randn(1, 3, 64, 64)).shape == (1, 16, 4, 4)
    assert build_encoder(sam.size).img_size == 64


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def test_files_of_both_layouts(sam_config, tmp_path):
    """A training checkpoint carries logs, and other weights than SAM's."""
    state = build(sam_config).state_dict()
    torch.save(state, tmp_path / 'official.pth')
    logs = HistoryBuffer()
    logs.update(0.5)
    torch.save(
        {
            'state_dict': {
                'detector.image_encoder.weight': torch.zeros(1),
                **{f'sam.{key}': value for key, value in state.items()},
            },
            'message_hub': {'log_scalars': {'loss': logs}},
            'meta': {'epoch': 1},
        },
        tmp_path / 'trained.pth',
    )
    torch.save({'state_dict': state}, tmp_path / 'bare.pth')
    for name in ('official.pth', 'trained.pth', 'bare.pth'):
        path = tmp_path / name
        assert same(read_sam_file(path), state), name
        sam = build(sam_config, checkpoint=str(path))
        assert same(sam.state_dict(), state), name


def test_files_that_do_not_fit_are_named(sam_config, tmp_path):
    path = tmp_path / 'x.pth'
    sam = build(sam_config)
    with pytest.raises(FileNotFoundError, match=r'no checkpoint file .*x\.p'):
        sam.load(path)
    for content in (
        {'state_dict': {'backbone.weight': torch.zeros(1)}},
        {'state_dict': None},
        {},
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r'x\.pth holds no SAM'):
            sam.load(path)
    before = {k: v.clone() for k, v in sam.state_dict().items()}
    torch.save(build(sam_config, depth=3, prompt_dim=32).state_dict(), path)
    with pytest.raises(
        ValueError, match=r'x\.pth does not fit PromptedSAM'
    ) as caught:
        sam.load(path)
    assert 'image_encoder.blocks.2' in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert same(sam.state_dict(), before)


def test_sizes_are_not_shared():
    """An override makes a size of its own."""
    before = dict(SAM_SIZES)
    sam = PromptedSAM('tiny', prompt_dim=64)
    assert sam.size.prompt_dim == 64
    assert before == SAM_SIZES
    assert SAM_SIZES['tiny'].prompt_dim == 128
