"""Query distillation: its terms by hand, its properties, its teacher."""

import dataclasses

import pytest
import torch

from taskptq.methods.qdetr.agreement import (
    class_divergence,
    distillation_distance,
    matched_agreement,
)
from taskptq.methods.qdetr.loss import QueryDistillationLoss
from taskptq.methods.qdetr.matching import match_queries
from taskptq.reconstruction.losses import NetworkProbe, ReconContext
from taskptq.registry import RECON_LOSSES

IMAGES, QUERIES, LAYERS, CLASSES, WIDTH = 2, 12, 3, 4, 6


class Adapter:
    """What the loss asks an adapter for."""

    def __init__(self, use_sigmoid=True):
        self.use_sigmoid = use_sigmoid

    def foreground_proxy(self, heads):
        return {
            name: head.sigmoid().amax(-1, keepdim=True)
            for name, head in heads.items()
            if name.startswith('cls.')
        }


def heads_of(seed=0, *, layers=LAYERS, queries=QUERIES, width=WIDTH):
    """Outputs whose first three queries are sure of their object."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.rand((IMAGES, queries, *shape), generator=generator)

    heads = {}
    for layer in range(layers):
        logits = noise(CLASSES) - 5
        logits[:, :3, 1] = 3.0
        heads[f'cls.{layer}'] = logits
        heads[f'box.{layer}'] = torch.cat(
            [0.2 + 0.6 * noise(2), 0.1 + 0.2 * noise(2)], dim=-1
        )
        heads[f'attended.{layer}'] = noise(width)
    return heads


def disturbed(heads, *, seed=9, deviation=0.02):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            head + deviation * torch.randn(head.shape, generator=generator)
        ).requires_grad_()
        for name, head in heads.items()
    }


def context(adapter=None, first=0):
    return ReconContext(
        unit='',
        step=0,
        num_steps=1,
        adapter=adapter or Adapter(),
        image_ids=tuple(range(first, first + IMAGES)),
    )


def value(loss, student, teacher, **kwargs):
    return loss(dict(student), dict(teacher), context(**kwargs))


def only_drd(**kwargs):
    return QueryDistillationLoss(box_weight=0, class_weight=0, **kwargs)


def permuted(heads, seed=5):
    order = torch.randperm(
        QUERIES, generator=torch.Generator().manual_seed(seed)
    )
    return {name: head[:, order] for name, head in heads.items()}


def test_is_registered():
    loss = RECON_LOSSES.build(dict(type='QueryDistillationLoss', tau=0.5))
    assert loss.tau == 0.5


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(layers='all'),
        dict(matching='hungarian'),
        dict(fqm=False),
        dict(metric='nwd'),
        dict(normalize=False),
        dict(agreement='own'),
    ],
)
@pytest.mark.parametrize('use_sigmoid', [True, False])
def test_teacher_equal_to_student_gives_zero(options, use_sigmoid):
    heads = heads_of()
    loss = QueryDistillationLoss(**options)
    loss.begin(probe_of([heads]))
    student = {n: h.clone().requires_grad_() for n, h in heads.items()}
    found = value(loss, student, heads, adapter=Adapter(use_sigmoid))
    assert found.item() == pytest.approx(0, abs=1e-6)
    found.backward()
    # The norm has no undefined gradient where the features are equal.
    grads = [h.grad for h in student.values() if h.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)
    assert loss.report()['pairs_per_image'] > 0


def test_tau_of_one_gives_zero():
    heads = heads_of()
    student = disturbed(heads)
    assert value(only_drd(tau=0.6), student, heads) > 0
    loss = QueryDistillationLoss(tau=1.0, background_weight=0)
    found = value(loss, student, heads)
    assert found.item() == 0
    found.backward()
    assert loss.report()['images_without_pairs'] == 1


@pytest.mark.parametrize('matching', ['argmax', 'hungarian'])
def test_order_of_teacher_queries_is_of_no_matter(matching):
    heads = heads_of()
    student = disturbed(heads)
    loss = QueryDistillationLoss(
        background_weight=0, layers='all', matching=matching
    )
    one = value(loss, student, heads)
    two = value(loss, student, permuted(heads))
    assert one > 0
    torch.testing.assert_close(one, two)
    by_index = only_drd(fqm=False)
    assert value(by_index, student, permuted(heads)) > 2 * value(
        by_index, student, heads
    )


def test_images_without_foreground_are_skipped():
    heads = heads_of()
    heads['cls.2'][0] = -6.0
    student = disturbed(heads)
    loss = only_drd(normalize=False)
    found = value(loss, student, heads)
    match = match_queries(
        student['box.2'],
        heads['box.2'],
        [torch.zeros(0, 4), heads['box.2'][1, :3]],
    )
    assert match.counts[0] == 0
    assert match.counts[1] >= 3
    apart = match.of_student(student['attended.2']) - match.of_teacher(
        heads['attended.2']
    )
    torch.testing.assert_close(found, apart.norm(dim=-1).mean())
    assert loss.report()['images_without_pairs'] == 0.5
    heads['cls.2'][1] = -6.0
    assert value(loss, student, heads).item() == 0


def test_gradients_flow_into_the_student_only():
    teacher = {n: h.requires_grad_() for n, h in heads_of().items()}
    student = disturbed({n: h.detach() for n, h in teacher.items()})
    loss = QueryDistillationLoss(layers='all')
    value(loss, student, teacher).backward()
    assert all(head.grad is None for head in teacher.values())
    assert all(float(head.grad.abs().sum()) > 0 for head in student.values())


def test_last_and_all_layers():
    heads = heads_of()
    student = disturbed(heads)
    last = only_drd()
    value(last, student, heads).backward()
    assert student['attended.2'].grad.abs().sum() > 0
    assert student['attended.0'].grad is None
    # The mean over the layers of what each of them gives by itself; the
    # foreground is always that of the teacher's last layer.
    every = value(only_drd(layers='all'), student, heads)
    single = []
    for layer in range(LAYERS):
        truths = list(heads['box.2'][:, :3])
        match = match_queries(
            student[f'box.{layer}'], heads[f'box.{layer}'], truths
        )
        norm = heads[f'attended.{layer}'].norm(dim=-1).square().mean().sqrt()
        single.append(
            distillation_distance(
                student[f'attended.{layer}'],
                heads[f'attended.{layer}'],
                match=match,
            )
            / norm
        )
    torch.testing.assert_close(every, torch.stack(single).mean())


def test_terms_add_up():
    heads = heads_of()
    student = disturbed(heads)
    loss = QueryDistillationLoss(
        weight=2.0, box_weight=3.0, class_weight=4.0, background_weight=0.5
    )
    found = value(loss, student, heads)
    match = match_queries(
        student['box.2'], heads['box.2'], list(heads['box.2'][:, :3])
    )
    norm = heads['attended.2'].norm(dim=-1).square().mean().sqrt()
    terms = matched_agreement(
        student['box.2'],
        heads['box.2'],
        student['cls.2'],
        heads['cls.2'],
        match=match,
        use_sigmoid=True,
    )
    rest = torch.ones(IMAGES, QUERIES, dtype=torch.bool)
    rest[match.image, match.student] = False
    background = class_divergence(
        student['cls.2'][rest], heads['cls.2'][rest], use_sigmoid=True
    )
    drd = distillation_distance(
        student['attended.2'], heads['attended.2'], match=match
    )
    expected = (
        2 * drd / norm
        + 3 * (5 * terms.l1 + 2 * terms.giou)
        + 4 * (terms.kl + 0.5 * background.mean())
    )
    torch.testing.assert_close(found, expected)
    report = loss.report()
    assert set(report['last_terms']) == {
        'attended',
        'box',
        'class',
        'background',
    }
    assert sum(report['last_terms'].values()) == pytest.approx(found.item())


def test_a_shared_partner_leaves_ones_own_score():
    """Two queries on one object: the one that was unsure stays so."""
    teacher = heads_of()
    for layer in range(LAYERS):
        teacher[f'box.{layer}'][:, 3] = teacher[f'box.{layer}'][:, 0] + 1e-4
    student = {name: head.clone() for name, head in teacher.items()}
    for layer in range(LAYERS):
        # Rounding swapped the boxes of both, nothing else.
        boxes = student[f'box.{layer}']
        boxes[:, [0, 3]] = boxes[:, [3, 0]].clone()
        student[f'cls.{layer}'].requires_grad_()
    gradients = {}
    for agreement in ('partner', 'own'):
        loss = QueryDistillationLoss(
            weight=0, box_weight=0, agreement=agreement
        )
        value(loss, student, teacher).backward()
        logits = student['cls.2']
        gradients[agreement] = logits.grad[:, 3, 1].clone()
        logits.grad = None
    assert (gradients['partner'] < -1e-3).all()  # raises its score
    assert gradients['own'].abs().max() < 1e-6


def probe_of(heads, *, batches=None):
    metas = [[{'img_shape': (64, 96)}] * IMAGES for _ in heads]
    return NetworkProbe(
        heads_float=heads,
        metas=metas,
        run=heads.__getitem__,
        adapter=Adapter(),
        batches=batches or [None] * len(heads),
    )


def test_nwd_takes_the_size_of_the_images():
    heads = heads_of()
    student = disturbed(heads, deviation=0.05)
    loss = only_drd(metric='nwd', tau=0.9)
    with pytest.raises(ValueError, match='give image_size'):
        value(loss, student, heads)
    loss.begin(probe_of([heads]))
    found = value(loss, student, heads)
    match = match_queries(
        student['box.2'],
        heads['box.2'],
        list(heads['box.2'][:, :3]),
        tau=0.9,
        metric='nwd',
        image_sizes=[(64, 96)] * IMAGES,
    )
    norm = heads['attended.2'].norm(dim=-1).square().mean().sqrt()
    expected = (
        distillation_distance(
            student['attended.2'], heads['attended.2'], match=match
        )
        / norm
    )
    torch.testing.assert_close(found, expected)


class Teacher:
    """Another teacher that gives prepared outputs."""

    name = 'other.py other.pth'

    def __init__(self, heads, *, use_sigmoid=True):
        self.heads = heads
        self.adapter = Adapter(use_sigmoid)
        self.seen = []

    def run(self, batches, *, device):
        self.seen.extend(batches)
        return self.heads


def test_another_teacher():
    own = [heads_of(0), heads_of(1)]
    other = [
        heads_of(2, layers=5, queries=20),
        heads_of(3, layers=5, queries=20),
    ]
    student = disturbed(own[1])
    loss = only_drd(teacher=Teacher(other), normalize=False)
    with pytest.raises(ValueError, match='call begin'):
        loss(dict(student), own[1], context(first=2))
    loss.begin(probe_of(own, batches=['a', 'b']))
    assert loss.teacher.seen == ['a', 'b']
    found = loss(dict(student), own[1], context(first=2))
    match = match_queries(
        student['box.2'], other[1]['box.4'], list(other[1]['box.4'][:, :3])
    )
    torch.testing.assert_close(
        found,
        distillation_distance(
            student['attended.2'], other[1]['attended.4'], match=match
        ),
    )
    # The resume digest tells teachers apart.
    assert loss.teacher_name == 'other.py other.pth'


@pytest.mark.parametrize(
    ('other', 'options', 'message'),
    [
        (heads_of(2, width=8), {}, 'attended has 8 channels'),
        (heads_of(2, layers=5), dict(layers='all'), 'teacher with 3 decoder'),
    ],
)
def test_another_teacher_that_does_not_fit(other, options, message):
    own = heads_of()
    loss = QueryDistillationLoss(teacher=Teacher([other]), **options)
    loss.begin(probe_of([own]))
    with pytest.raises(ValueError, match=message):
        value(loss, disturbed(own), own)


def test_another_teacher_with_other_classes():
    own, other = heads_of(), heads_of(2)
    loss = QueryDistillationLoss(teacher=Teacher([other], use_sigmoid=False))
    loss.begin(probe_of([own]))
    with pytest.raises(ValueError, match='set class_weight=0'):
        value(loss, disturbed(own), own)
    loss.begin(probe_of([own], batches=[1]))
    with pytest.raises(ValueError, match='and no vary_images'):
        loss.begin(dataclasses.replace(probe_of([own]), batches=[]))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(tau=1.5), 'tau=1.5'),
        (dict(teacher_score_thr=-1), 'teacher_score_thr=-1'),
        (dict(matching='greedy'), "matching='greedy'"),
        (dict(metric='iou'), "metric='iou'"),
        (dict(layers='first'), "layers='first'"),
        (dict(agreement='all'), "agreement='all'"),
        (dict(mu1=-1), 'mu1=-1'),
        (dict(weight=0, box_weight=0, class_weight=0), 'set one of weight'),
        (dict(teacher=dict(config='a.py')), 'still a config'),
        (dict(teacher=object(), fqm=False), 'remove teacher'),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        QueryDistillationLoss(**settings)


def test_calls_that_cannot_be():
    loss = QueryDistillationLoss()
    heads = heads_of()
    with pytest.raises(ValueError, match="scope='network'"):
        loss(torch.zeros(2), torch.zeros(2), context())
    block = dataclasses.replace(context(), unit='decoder.layers.0')
    with pytest.raises(ValueError, match=r"on the unit 'decoder.layers.0'"):
        loss(heads, heads, block)
    bare = {n: h for n, h in heads.items() if 'attended' not in n}
    with pytest.raises(ValueError, match=r'no attended.2'):
        value(loss, bare, bare)
    value(QueryDistillationLoss(weight=0), bare, bare)
