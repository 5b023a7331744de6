import numpy as np
import pytest
from PIL import Image

from taskptq.robustness.names import parse_noises
from taskptq.robustness.pipeline import (
    MixedPipeline,
    NoisyPipeline,
    shift_window,
)
from taskptq.robustness.resizing import resize


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = tmp_path / 'a.jpg'
    Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)).save(file)
    return str(file)


def load(results):
    with Image.open(results['img_path']) as image:
        results['img'] = np.asarray(image.convert('RGB'))[..., ::-1]
    return results


def load_rgb_floats(results):
    results = load(results)
    results['img'] = results['img'][..., ::-1].astype(np.float32)
    return results


def shrink(results):
    dtype = results['img'].dtype
    image = resize(
        results['img'].astype(np.uint8), (24, 32), method='opencv-bilinear'
    )
    return {**results, 'img': image.astype(dtype), 'scale_factor': 0.5}


def pad(results):
    image = np.pad(results['img'], ((0, 8), (0, 0), (0, 0)))
    return {**results, 'img': image}


def run(path, names, steps=(load, shrink, pad)):
    noises = parse_noises(names) if names else ()
    pipeline = NoisyPipeline(steps, noises=noises)
    return pipeline({'img_path': path})['img'], pipeline


def test_without_noise_nothing_changes(path):
    image, pipeline = run(path, '')
    assert np.array_equal(image, pad(shrink(load({'img_path': path})))['img'])
    assert not pipeline.changed


def test_only_the_step_that_resizes_is_replaced(path):
    image, pipeline = run(path, 'resize=opencv-nearest')
    source = load({'img_path': path})['img']
    wanted = resize(source, (24, 32), method='opencv-nearest')
    assert np.array_equal(image[:24], wanted)
    assert not image[24:].any()
    assert pipeline.changed == 1


def test_what_changes_nothing_says_why(path):
    for names, reason in (
        ('resize=opencv-bilinear', ''),
        ('decode=pillow', ''),
    ):
        _, pipeline = run(path, names)
        assert not pipeline.changed
        assert ''.join(pipeline.reasons) == reason
    _, pipeline = run(path, 'resize=pillow-box', steps=(load, pad))
    assert pipeline.reasons == {
        'no transform of the pipeline resizes the images'
    }


@pytest.mark.parametrize('noise', ['decode=fast-dct', 'fog=3', 'color=nv12'])
def test_noises_reach_the_read_image(path, noise):
    pytest.importorskip('simplejpeg')
    pytest.importorskip('imagecorruptions')
    clean, _ = run(path, '')
    noisy, pipeline = run(path, noise)
    again, _ = run(path, noise)
    assert pipeline.changed == 1
    assert np.array_equal(noisy, again)
    assert not np.array_equal(noisy, clean)


def test_color_order_and_dtype_stay(path):
    pytest.importorskip('simplejpeg')
    steps = (load_rgb_floats, shrink)
    rgb, _ = run(path, 'decode=fast-dct', steps=steps)
    bgr, _ = run(path, 'decode=fast-dct', steps=(load, shrink))
    assert rgb.dtype == np.float32
    assert np.array_equal(rgb, bgr[..., ::-1])


def test_a_reader_that_does_more_is_left_alone(path):
    def load_part(results):
        results = load(results)
        return {**results, 'img': results['img'][:-1]}

    _, pipeline = run(path, 'decode=ffmpeg', steps=(load_part,))
    assert not pipeline.changed
    assert 'does more than decode' in ''.join(pipeline.reasons)


def test_other_files_are_named(tmp_path):
    file = tmp_path / 'a.png'
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    _, pipeline = run(str(file), 'decode=ffmpeg', steps=(load,))
    assert pipeline.reasons == {'the images are not JPEG files'}


def test_the_window_moves_by_a_pixel():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    found = shift_window(image, pixels=1)[..., 0]
    assert found.tolist() == [[5, 6, 7, 7], [9, 10, 11, 11], [9, 10, 11, 11]]


def test_a_dropped_image_stays_dropped(path):
    pipeline = NoisyPipeline([load, lambda _: None], noises=())
    assert pipeline({'img_path': path}) is None


def test_each_image_gets_one_of_the_noises(path):
    pipeline = MixedPipeline([load], names=['clean', 'crop=1'], seed=1)
    clean = load({'img_path': path})['img']
    found = pipeline({'img_path': path})['img']
    again = MixedPipeline([load], names=['clean', 'crop=1'], seed=1)
    assert np.array_equal(again({'img_path': path})['img'], found)
    seen = set()
    for seed in range(12):
        mixed = MixedPipeline([load], names=['clean', 'crop=1'], seed=seed)
        image = mixed({'img_path': path})['img']
        seen.add(bool(np.array_equal(image, clean)))
    assert seen == {True, False}
