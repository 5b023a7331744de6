import pytest
import torch
from mmengine.dataset import pseudo_collate

from taskptq.apis import read_config
from taskptq.bench.robustness.attacking import (
    AttackEvaluation,
    pixels,
    task_loss,
)
from taskptq.bench.robustness.evaluation import RobustnessEvaluation
from taskptq.bench.robustness.plan import parse_row
from taskptq.bench.robustness.subjects import load_subjects
from taskptq.robustness.attacks import attack


@pytest.fixture
def attacks(noisy_task):
    config = read_config(noisy_task.config)
    evaluation = RobustnessEvaluation(config)
    subjects = load_subjects(
        config,
        str(noisy_task.float),
        [str(noisy_task.quantized)],
        model=evaluation.model,
        device='cpu',
    )
    clean = {
        name: outcome.metrics['mShare']
        for name, outcome in evaluation.run(subjects, ()).items()
    }
    return AttackEvaluation(evaluation), subjects, clean


def run(attacks, name):
    evaluation, subjects, _ = attacks
    return evaluation.run(subjects, parse_row(name).attack, source=subjects[0])


def test_gradients_hurt_both_models_more_than_random_signs(attacks):
    clean = attacks[2]
    random, fgsm, pgd = (
        run(attacks, f'{a}=8') for a in ('random', 'fgsm', 'pgd')
    )
    for name in ('float', 'net_w4a8'):
        values = [one[name].metrics['mShare'] for one in (random, fgsm, pgd)]
        assert max(values[1:]) < min(clean[name], values[0])
    assert run(attacks, 'pgd=8') == pgd


def test_transferred_attacks_are_those_of_the_float_model(attacks):
    found = run(attacks, 'fgsm-transferred=8')
    assert 'made for this model' in found['float'].reason
    own = run(attacks, 'fgsm=8')['net_w4a8'].metrics['mShare']
    other = found['net_w4a8'].metrics['mShare']
    assert other < attacks[2]['net_w4a8']
    assert other != own


def test_images_stay_within_the_budget(attacks):
    evaluation, subjects, _ = attacks
    plan = parse_row('pgd=4').attack
    attacked = evaluation.attacked(subjects[1], plan)
    tested = evaluation.images.reader().samples()
    for one, two in zip(attacked, tested, strict=True):
        for noisy, clean in zip(one, two, strict=True):
            error = noisy['inputs'] - clean['inputs'].float()
            assert 3 < float(error.abs().max()) <= 4 + 1e-4
            assert noisy['data_samples'] == clean['data_samples']


def test_what_cannot_be_attacked_says_so(attacks):
    _, subjects, _ = attacks
    subjects[1].kind = 'exported'
    found = run(attacks, 'fgsm=4')
    assert 'has no gradients' in found['net_w4a8'].reason
    assert found['float'].metrics
    with pytest.raises(ValueError, match='no longer uint8'):
        pixels({'inputs': torch.zeros(3, 4, 4)})


@pytest.mark.parametrize('name', ['fcos', 'retinanet', 'faster'])
@pytest.mark.parametrize('bits', [None, 4])
def test_losses_of_detectors_are_raised(name, bits):
    pytest.importorskip('mmdet')
    from tiny_detectors import build, detection_batch, quantized

    batch = detection_batch(num_boxes=(3, 2))
    model = build(name, {}).eval()
    if bits is not None:
        points = {key: {'num_bits': bits} for key in ('weight', 'activation')}
        quantized(model, batch, **points)
    samples = [
        {'inputs': image, 'data_samples': sample}
        for image, sample in zip(*batch.values(), strict=True)
    ]
    images = [image.float() for image in batch['inputs']]
    loss = task_loss(model, samples, collate=pseudo_collate)
    before = loss(images).item()
    raised = {
        kind: loss(attack(kind, images, loss, epsilon=8.0, seed=0)).item()
        for kind in ('random', 'fgsm', 'pgd')
    }
    gained = min(raised['fgsm'], raised['pgd'])
    assert gained > max(before, raised['random'])
