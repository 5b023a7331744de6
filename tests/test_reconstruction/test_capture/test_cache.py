import pytest
import torch

from taskptq.reconstruction.capture.cache import ActivationCache

TENSORS = {
    'vector': torch.randn(7),
    'tokens': torch.randn(5, 3, 4),
    'image': torch.randn(5, 3, 4, 6),
    'half': torch.randn(4, 2, 3, 3).to(torch.bfloat16),
    'mask': torch.rand(5, 9) > 0.5,
    'index': torch.arange(12).reshape(6, 2),
    'five': torch.randn(3, 2, 2, 2, 2),
    'turned': torch.randn(4, 6).t(),
}


def num_bytes(tensor):
    return tensor.numel() * tensor.element_size()


def files_of(folder):
    return [path for path in folder.rglob('*') if path.is_file()]


@pytest.fixture(params=[0, 1 << 20], ids=['disk', 'memory'])
def cache(request, tmp_path):
    cache = ActivationCache(request.param, directory=tmp_path)
    yield cache
    cache.close()


@pytest.mark.parametrize('kind', TENSORS)
def test_reads_back_equal(cache, kind):
    tensor = TENSORS[kind]
    cache.put(kind, tensor)
    back = cache.get(kind)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)
    assert cache.shape(kind) == tuple(tensor.shape)


@pytest.mark.parametrize('kind', TENSORS)
@pytest.mark.parametrize('index', [[0], [2, 0, 1], [1, 1, 2]])
def test_rows_in_any_order(cache, kind, index):
    tensor = TENSORS[kind]
    cache.put(kind, tensor)
    assert torch.equal(cache.rows(kind, index), tensor[index])


def test_images_lie_channels_last(cache):
    cache.put('image', TENSORS['image'])
    for back in (cache.get('image'), cache.rows('image', [3, 1])):
        assert back.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'form', [torch.contiguous_format, torch.channels_last]
)
def test_images_in_plain_memory_on_request(cache, form):
    image = TENSORS['image'].contiguous(memory_format=form)
    cache.put('image', image)
    whole = cache.get('image', plain=True)
    some = cache.rows('image', [3, 1], plain=True)
    assert torch.equal(whole, image)
    assert torch.equal(some, image[[3, 1]])
    assert whole.is_contiguous()
    assert some.is_contiguous()


@pytest.mark.parametrize('shape', [(), (0, 4), (3, 0), (0, 2, 3, 3)])
def test_scalars_and_empty_tensors(cache, shape):
    tensor = torch.ones(shape)
    cache.put('x', tensor)
    assert torch.equal(cache.get('x'), tensor)
    assert cache.shape('x') == shape


def test_keeps_a_copy(cache):
    tensor = torch.ones(2, 3)
    cache.put('x', tensor)
    tensor.zero_()
    assert torch.equal(cache.get('x'), torch.ones(2, 3))


def test_no_graph_is_kept(cache):
    cache.put('x', torch.ones(2, requires_grad=True) * 2)
    assert not cache.get('x').requires_grad


def test_over_the_budget_goes_to_disk(tmp_path):
    image, tokens = TENSORS['image'], TENSORS['tokens']
    budget = num_bytes(image) + num_bytes(tokens) - 1
    cache = ActivationCache(budget, directory=tmp_path)
    cache.put('image', image)
    assert files_of(tmp_path) == []
    cache.put('tokens', tokens)
    cache.put('vector', torch.zeros(2))  # still fits beside the image
    (file,) = files_of(tmp_path)
    assert file.stat().st_size == num_bytes(tokens)
    assert cache.spilled_bytes == num_bytes(tokens)
    assert cache.used_bytes == num_bytes(image) + 8 <= budget
    assert torch.equal(cache.get('image'), image)
    assert torch.equal(cache.get('tokens'), tokens)


def test_exactly_the_budget_stays_in_memory(tmp_path):
    cache = ActivationCache(num_bytes(TENSORS['image']), directory=tmp_path)
    cache.put('image', TENSORS['image'])
    assert cache.spilled_bytes == 0


def test_delete_frees_memory_and_files(tmp_path):
    cache = ActivationCache(16, directory=tmp_path)
    cache.put('held', torch.zeros(4))
    cache.put('file', torch.zeros(5))
    assert len(files_of(tmp_path)) == 1
    for key in ('held', 'file', 'unknown'):
        cache.delete(key)
        assert key not in cache
    assert cache.used_bytes == 0
    assert files_of(tmp_path) == []
    cache.put('again', torch.zeros(4))
    assert files_of(tmp_path) == []


def test_replacing_counts_once(cache, tmp_path):
    for value in (1.0, 2.0):
        cache.put('x', torch.full((3, 2), value))
    assert torch.equal(cache.get('x'), torch.full((3, 2), 2.0))
    assert cache.used_bytes in (0, 24)
    assert len(files_of(tmp_path)) == (cache.used_bytes == 0)


def test_close_removes_files_and_folder(tmp_path):
    cache = ActivationCache(0, directory=tmp_path / 'new')
    cache.put('x', torch.zeros(5))
    assert 'x' in cache
    assert files_of(tmp_path)
    cache.close()
    assert 'x' not in cache
    assert list((tmp_path / 'new').iterdir()) == []
    cache.close()


def test_own_folder_is_removed_too(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    cache = ActivationCache(0)
    cache.put('x', torch.zeros(5))
    assert files_of(tmp_path)
    cache.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('max_bytes', [1 << 20, 0])
@pytest.mark.parametrize('shape', [(40, 32, 32), (40, 4, 16, 16), (40, 1024)])
def test_equal_rows_are_stored_once(shape, max_bytes, tmp_path):
    tensor = torch.randn(1, *shape[1:]).expand(shape).clone()
    cache = ActivationCache(max_bytes, directory=tmp_path)
    cache.put('same', tensor)
    assert cache.used_bytes + cache.spilled_bytes == 4 * 1024
    assert cache.shape('same') == shape
    assert torch.equal(cache.get('same'), tensor)
    copy = cache.get('same').clone()
    copy[0] = 0  # a clone is an ordinary tensor
    assert torch.equal(copy[1:], tensor[1:])
    assert torch.equal(cache.rows('same', [39, 0, 7]), tensor[:3])
    tensor[17].view(-1)[5] += 1
    cache.put('same', tensor)
    assert torch.equal(cache.get('same'), tensor)
    assert torch.equal(cache.rows('same', [17, 0]), tensor[[17, 0]])
    assert cache.used_bytes + cache.spilled_bytes >= 4 * 40 * 1024
    cache.close()
