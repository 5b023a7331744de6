"""A tiny Segment Anything, whole: swap, units, reconstruction, file.

Its mask decoder has prompts as rows, whose number differs from image to
image, is called once for each image and chunk of prompts, and gives tuples.
"""

import copy

import pytest
import torch
from torch import nn

from taskptq.calibration import calibrate
from taskptq.core import float_only, quantizing
from taskptq.core.switches import quantizers
from taskptq.engine.restore import restore_model
from taskptq.export import load, pack_model, save
from taskptq.modules.base import quant_modules
from taskptq.prepare import QConfig, prepare, split_blocks
from taskptq.prepare.product_rows import add_own_products
from taskptq.reconstruction import freeze, reconstruct
from taskptq.reconstruction.capture.unit_data import UnitData

modeling = pytest.importorskip('segment_anything.modeling')
build_sam = pytest.importorskip('segment_anything.build_sam')

# What the published recipe keeps float, by role.
KEEP_FLOAT = (
    'sam.image_encoder.patch_embed.*',
    'sam.prompt_encoder.mask_downscaling.*',
    'sam.mask_decoder.output_upscaling.*',
    'sam.mask_decoder.output_hypernetworks_mlps.*',
    'sam.mask_decoder.iou_prediction_head.*',
)
# Tables and phases of positions, float by design.
FLOAT_BY_DESIGN = {
    'sam.image_encoder',
    'sam.prompt_encoder.pe_layer',
    *(
        f'sam.prompt_encoder.{name}'
        for name in (
            'point_embeddings.0',
            'point_embeddings.1',
            'point_embeddings.2',
            'point_embeddings.3',
            'not_a_point_embed',
            'no_mask_embed',
        )
    ),
    'sam.mask_decoder.iou_token',
    'sam.mask_decoder.mask_tokens',
}
SIZES = {'vit_b': 12, 'vit_l': 24, 'vit_h': 32, 'tiny': 2}
UNITS = [
    'sam.image_encoder.blocks.0',
    'sam.image_encoder.blocks.1',
    'sam.image_encoder.neck',
    'sam.mask_decoder.transformer.layers.0',
    'sam.mask_decoder.transformer.layers.1',
    'sam.mask_decoder.transformer.final_attn_token_to_image',
]
MASKS = 'sam.mask_decoder.products'
DECODER = {'keep_float': [*KEEP_FLOAT, 'sam.image_encoder.*']}


def tiny_sam():
    """Maps of 8 x 8 tokens, windows of 3 x 3 (padded), a global block."""
    encoder = modeling.ImageEncoderViT(
        img_size=32,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        out_chans=16,
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    for name, parameter in encoder.named_parameters():
        if 'rel_pos' in name or name == 'pos_embed':
            nn.init.normal_(parameter, std=0.5)
    return modeling.Sam(
        encoder,
        modeling.PromptEncoder(
            embed_dim=16,
            image_embedding_size=(8, 8),
            input_image_size=(32, 32),
            mask_in_chans=4,
        ),
        modeling.MaskDecoder(
            transformer_dim=16,
            iou_head_hidden_dim=16,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=16, num_heads=2, mlp_dim=32
            ),
        ),
    )


class Prompted(nn.Module):
    """SAM that decodes each image's boxes, a few at a time."""

    def __init__(self, sam, chunk=4):
        super().__init__()
        self.sam = sam
        self.chunk = chunk

    def forward(self, batch):
        embeddings = self.sam.image_encoder(torch.stack(batch['inputs']))
        masks = []
        for embedding, boxes in zip(embeddings, batch['boxes'], strict=True):
            for part in boxes.split(self.chunk) if len(boxes) else ():
                sparse, dense = self.sam.prompt_encoder(None, part, None)
                masks.append(
                    self.sam.mask_decoder(
                        embedding[None],
                        self.sam.prompt_encoder.get_dense_pe(),
                        sparse,
                        dense,
                        multimask_output=False,
                    )[0]
                )
        return torch.cat(masks) if masks else torch.empty(0)


def run(model, batch):
    return model(batch)


def prompted_batches(counts, seed=0):
    """Batches; each entry lists the boxes of its images."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for of_images in counts:
        boxes = []
        for count in of_images:
            first = torch.rand(count, 2, generator=generator) * 16
            size = torch.rand(count, 2, generator=generator) * 12 + 3
            boxes.append(torch.cat([first, first + size], dim=1))
        images = torch.randn(len(of_images), 3, 32, 32, generator=generator)
        batches.append({'inputs': list(images), 'boxes': boxes})
    return batches


def fresh():
    torch.manual_seed(0)
    return Prompted(tiny_sam()).eval()


def qconfig(**kwargs):
    return QConfig.from_dict(
        {
            'weight': {'num_bits': 3, 'symmetric': False},
            'activation': {'type': 'LSQQuantizer', 'num_bits': 6},
            'edge_bits': None,
            'keep_float': list(KEEP_FLOAT),
        }
        | kwargs
    )


def make(counts, **kwargs):
    model, batches = fresh(), prompted_batches(counts)
    prepare(model, qconfig(**kwargs))
    calibrate(model, batches, forward=run)
    return model, batches


def official(size):
    if size == 'tiny':
        return fresh()
    with torch.device('meta'):
        return Prompted(build_sam.sam_model_registry[size]()).eval()


@pytest.mark.parametrize('size', SIZES)
def test_keep_float_patterns_hold_for_every_size(size):
    model = official(size)
    weighted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    }
    attention = {
        name
        for name, module in model.named_modules()
        if type(module).__name__ == 'Attention'
    }
    report = prepare(model, qconfig())
    rows = {row.name: row for row in report.rows}
    assert set(rows) == weighted | attention | FLOAT_BY_DESIGN
    assert len(attention) == SIZES[size] + 7
    kept = {n for n, row in rows.items() if row.status == 'float'}
    assert kept >= FLOAT_BY_DESIGN
    kept -= FLOAT_BY_DESIGN
    for pattern in KEEP_FLOAT:
        prefix = pattern.removesuffix('*')
        expected = {n for n in weighted if n.startswith(prefix)}
        assert expected
        assert expected <= kept
        kept -= expected
    assert not kept
    assert all(row.reason for row in rows.values() if row.status == 'float')
    for name in attention:
        assert rows[name].attention_bits == rows[name].softmax_bits == 6


@pytest.mark.parametrize('pattern', KEEP_FLOAT)
def test_each_entry_is_switchable(pattern):
    model = fresh()
    others = [p for p in KEEP_FLOAT if p != pattern]
    report = prepare(model, qconfig(keep_float=others, edge_bits=8))
    prefix = pattern.removesuffix('*')
    found = [row for row in report.rows if row.name.startswith(prefix)]
    assert found
    assert all(row.status == 'quantized' for row in found)
    # First and last layers of what is switched on are edges.
    edges = [row.name for row in found if row.weight_bits == 8]
    assert bool(edges) == ('mask_downscaling' not in pattern)


def test_quantizers_off_is_float():
    batches = prompted_batches([[3, 5]], seed=4)
    expected = fresh()(batches[0])
    model, _ = make([[3], [6]])
    with float_only(model), torch.no_grad():
        found = model(batches[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with quantizing(model), torch.no_grad():
        assert (model(batches[0]) - expected).abs().max() > 1e-3


def test_shared_inputs_leave_no_quantizer_unobserved():
    model, batches = fresh(), prompted_batches([[3]])
    prepare(model, qconfig())
    report = calibrate(model, batches, forward=run)
    assert report.unobserved == []
    layers = 'sam.mask_decoder.transformer.layers'
    unset = {n for n, q in quantizers(model) if not q.calibrated}
    assert unset == {
        f'{layers}.0.self_attn.key_input_quantizer',
        f'{layers}.0.self_attn.value_input_quantizer',
        f'{layers}.1.self_attn.key_input_quantizer',
    }


def test_units_are_blocks_of_encoder_and_decoder():
    model, _ = make([[3]])
    units = split_blocks(model, extra=['*image_encoder.neck'])
    assert [unit.name for unit in units] == UNITS
    held = {id(m) for unit in units for _, m in unit.layers()}
    # The masks are a product of the decoder's own code, around all units.
    free = {n for n, m in quant_modules(model) if id(m) not in held}
    assert free == {MASKS}
    without = [unit.name for unit in split_blocks(model)]
    place = UNITS.index('sam.image_encoder.neck')
    assert without[place : place + 2] == [
        f'{UNITS[place]}.0',
        f'{UNITS[place]}.2',
    ]


@torch.no_grad()
def test_packed_file_predicts_the_same(tmp_path):
    model, batches = fresh(), prompted_batches([[3], [6]])
    report = prepare(model, qconfig())
    calibrate(model, batches, forward=run)
    add_own_products(report, model)
    freeze(model)
    structure = {'decisions': report.decisions.to_dict()}
    recipe = {'qconfig': qconfig().to_dict()}
    payload = pack_model(model, recipe=recipe, meta={}, structure=structure)
    save(payload, tmp_path / 'q.pth')
    other = Prompted(tiny_sam()).eval()
    restore_model(load(tmp_path / 'q.pth'), other)
    masks = other.get_submodule(MASKS)
    assert all(q.calibrated and q.enabled for _, q in quantizers(masks))
    for batch in batches:
        assert torch.equal(other(batch), model(batch))


# Prompts of each image of each batch; a chunk has four at most.
COUNTS = {
    'one call each': [[4], [3], [2]],
    'calls by chunks': [[9], [3], [6]],
    'several images': [[2, 3], [6, 1], [4, 4]],
    'images without prompts': [[0], [3], [0, 5]],
}


@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
def test_rows_are_prompts_of_any_call(counts, plan):
    """Float inputs of a draw give exactly the draw's float targets."""
    model, batches = make(counts)
    total = sum(sum(of_images) for of_images in counts)
    images = sum(len(of_images) for of_images in counts)
    first = next(i for i, of_images in enumerate(counts) if sum(of_images))
    order = [batches[first], *batches[:first], *batches[first + 1 :]]
    capturer = plan(model, order, extra=['*image_encoder.neck'], forward=run)
    assert [p.unit.name for p in capturer.plans] == UNITS
    capturer.capture_float()
    for index, unit_plan in enumerate(capturer.plans):
        if index and unit_plan.captured(index):
            capturer.capture_quant(index)
        data = UnitData(
            capturer, index, cache=capturer.cache, rows_per_image=100
        )
        data.compute('float', keep=None)
        data.compute('quant', keep=())
        data.prepare_sampling()
        is_decoder = 'mask_decoder' in unit_plan.unit.name
        for size in (1, 1000):
            calls, _ = data.sample(size, drop_prob=1.0)
            for (args, kwargs), targets in calls:
                module = unit_plan.unit.module
                with float_only(module), torch.no_grad():
                    found = module(*args, **kwargs)
                found = found if isinstance(found, tuple) else (found,)
                assert len(found) == len(targets)
                for one, two in zip(found, targets, strict=True):
                    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
            if is_decoder:
                rows = total if size > 1 else total // images
                assert len(targets[0]) == rows
                assert len(calls) == 1


@torch.no_grad()
def mask_error(model, batches):
    reference = fresh()
    return sum(
        float((model(batch) - reference(batch)).square().mean())
        for batch in batches
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ('rounding', 'scope'), [('adaround', 'block'), ('gptq', 'layer')]
)
def test_decoder_is_reconstructed(rounding, scope, quick):
    counts = [[0], [9], [3], [6, 2]]
    model, batches = make(counts, **DECODER)
    plain = copy.deepcopy(model)
    freeze(plain)
    config = quick(
        rounding=rounding,
        scope=scope,
        steps=40,
        batch_size=4,
        weight_lr=0.05,
        rounding_weight=1.0,
        drop_prob=0.0,
    )
    report = reconstruct(model, batches, config, forward=run, progress=False)
    assert report.uncalled == []
    if scope == 'block':
        assert [unit.name for unit in report.units] == UNITS[3:]
    if rounding == 'adaround':
        falls = [u.loss_end < u.loss_start for u in report.units]
        assert sum(falls) >= 0.7 * len(falls)
    freeze(model)
    error = [mask_error(m, batches[1:]) for m in (plain, model)]
    assert error[1] < 0.95 * error[0]


def test_whole_model_is_reconstructed(quick):
    model, batches = make([[5], [2]])
    before = copy.deepcopy(model)
    config = quick(steps=20, blocks=['*image_encoder.neck'])
    report = reconstruct(model, batches, config, forward=run, progress=False)
    assert [unit.name for unit in report.units] == UNITS
    assert sum(u.loss_end < u.loss_start for u in report.units) >= 4
    freeze(model)
    freeze(before)
    assert any(
        not torch.equal(one.codes(p), two.codes(p))
        for (_, one), (_, two) in zip(
            quant_modules(model), quant_modules(before), strict=True
        )
        for p, _ in one.active_slots()
    )
