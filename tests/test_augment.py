"""Augmentation against torchvision, and batches as a function of (seed, epoch)."""

import math

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional

from kesi.data import Dataset, Split, TrainBatches, eval_batches, resample
from kesi.data.augment import Normalise, PadCrop, RandomResizedCrop
from kesi.system.errors import UsageError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN = Normalise.of((0.0, 0.0, 0.0), (1 / 255,) * 3)  # leaves 0..255 as it is


def noise(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8,
                         generator=generator(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dataset_of(images: torch.Tensor, augmentation, rows=None, sizes=None) -> Dataset:
    count = len(images) if rows is None else len(rows)
    split = Split(images, torch.arange(count), rows, sizes)
    return Dataset("noise", split, split, None, ("a",), MEAN, STD, augmentation.size, augmentation)


def normalised(image: torch.Tensor) -> torch.Tensor:
    """The classic way, for uint8 (3, H, W)."""
    return functional.normalize(image.float() / 255, MEAN, STD)


def epoch(dataset: Dataset, number: int = 0, batch_size: int = 8, seed: int = 0, **options) -> list:
    return list(TrainBatches(dataset, batch_size, seed, **options).epoch(number))


def same(first: list, second: list) -> bool:
    return (len(first) == len(second) and all(torch.equal(x, x2) and torch.equal(y, y2) for (x, y),
                                              (x2, y2) in zip(first, second, strict=True)))


# Pad and crop


@pytest.mark.parametrize(("size", "padding", "flip"), [(32, 4, True), (16, 2, False)])
def test_pad_crop_is_torchvisions_for_the_same_draws(size, padding, flip):
    images, augmentation = noise(40, size), PadCrop(size, padding, flip)
    draws = augmentation.draw(torch.full((40, 2), size), size, generator(1))
    rows = torch.randperm(40, generator=generator(2))
    normalise = Normalise.of(MEAN, STD)
    x = augmentation.train(augmentation.prepare(images, "cpu"), rows, draws, normalise)
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    # a draw for each image, not for the batch
    assert len({tuple(draw) for draw in draws.tolist()}) > 15
    for result, row, (top, left, mirrored) in zip(x, rows.tolist(), draws.tolist(), strict=True):
        expected = functional.pad(images[row].permute(2, 0, 1), [padding])
        expected = functional.crop(expected, top, left, size, size)
        expected = functional.hflip(expected) if mirrored else expected
        torch.testing.assert_close(result, normalised(expected), atol=2e-6, rtol=0)


def test_pad_crop_draws_are_uniform_and_independent():
    count = 81 * 400
    draws = PadCrop(32, 4).draw(torch.full((count, 2), 32), 32, generator(3))
    cells = torch.bincount(draws[:, 0] * 9 + draws[:, 1], minlength=81).double()
    chi_square = ((cells - 400) ** 2 / 400).sum().item()
    assert len(cells) == 81 and 40 < chi_square < 130  # 80 degrees of freedom: mean 80, std 12.6
    assert abs(draws[:, 2].double().mean() - 0.5) < 4 * 0.5 / math.sqrt(count)
    correlation = np.corrcoef(draws.numpy().T)
    assert abs(correlation - np.eye(3)).max() < 0.03
    assert not PadCrop(16, 2, flip=False).draw(torch.full((99, 2), 16), 16,
                                               generator(0))[:, 2].any()


# Crop and resize


@pytest.mark.parametrize(("side", "size"), [(64, 224), (64, 48), (40, 32)])
def test_random_resized_crop_is_torchvisions_for_the_same_box(side, size):
    images, augmentation = noise(24, side), RandomResizedCrop(size)
    draws = augmentation.draw(torch.full((24, 2), side), side, generator(4))
    assert draws[:, 4].unique().tolist() == [0, 1]
    rows = torch.arange(24)
    on_cpu = augmentation.train(images, rows, draws, PLAIN)
    on_gpu = resample.crop_batch(images, rows, draws[:, :4], draws[:, 4] == 1, size).permute(0, 3,
                                                                                             1, 2)
    assert on_cpu.is_contiguous(memory_format=torch.channels_last)
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)
    for row, (top, left, tall, wide, mirrored) in enumerate(draws.tolist()):
        image = images[row].permute(2, 0, 1)
        box = (top, left, tall, wide, [size, size])
        in_bytes = functional.resized_crop(image, *box, antialias=True)
        in_floats = functional.resized_crop(image.float(), *box, antialias=True)
        if mirrored:
            in_bytes, in_floats = functional.hflip(in_bytes), functional.hflip(in_floats)
        # of 255: rounded in another order where mirrored
        assert (on_cpu[row] - in_bytes).abs().max() < 1.01
        assert (on_gpu[row] - in_floats).abs().max() < 0.01


def test_matrix_products_in_parts_give_the_same(monkeypatch):
    images, augmentation = noise(10, 32), RandomResizedCrop(24)
    draws = augmentation.draw(torch.full((10, 2), 32), 32, generator(5))
    arguments = (images, torch.arange(10), draws[:, :4], draws[:, 4] == 1, 24)
    whole = resample.crop_batch(*arguments)
    # three images at a time
    monkeypatch.setattr(resample, "BOUND", 3 * 4 * 3 * (32 * 32 + 2 * 24 * 32))
    torch.testing.assert_close(resample.crop_batch(*arguments), whole, atol=1e-4, rtol=0)


def largest_gap(first: np.ndarray, second: np.ndarray) -> float:
    """The statistic of Kolmogorov and Smirnov: the largest distance between the two distribution
    functions."""
    values = np.sort(np.concatenate([first, second]))
    places = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (first, second)
    ]
    return float(np.abs(places[0] - places[1]).max())


@pytest.mark.parametrize("shape", [(64, 64), (120, 50), (60, 300)])
def test_boxes_have_torchvisions_distribution(shape):
    count, image = 4000, torch.zeros(3, *shape)
    torch.manual_seed(0)
    pick = transforms.RandomResizedCrop.get_params
    theirs = np.array([pick(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], dtype=float)
    numbers = torch.rand((count, 22), dtype=torch.float64, generator=generator(6))
    sizes = torch.tensor([shape]).expand(count, 2)
    ours = resample.random_boxes(sizes, numbers, (0.08, 1.0), (3 / 4, 4 / 3)).double().numpy()
    bound = 1.95 * math.sqrt(2 / count)  # exceeded by chance once in a thousand
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0] + box[:, 2] / 2,
        lambda box: box[:, 1] + box[:, 3] / 2,
    ):
        assert largest_gap(measure(ours), measure(theirs)) < bound
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= shape).all()


def test_batches_have_torchvisions_pixel_statistics():
    """Mean, spread within an image and spread between images, of crops of one image with structure.
    """
    ramp = torch.linspace(0, 255, 64)
    image = torch.stack(
        [ramp[:, None].expand(64, 64), ramp.expand(64, 64), (ramp[:, None] * ramp / 255)], dim=2
    )
    image = image.round().to(torch.uint8)
    count, augmentation = 1500, RandomResizedCrop(32)
    draws = augmentation.draw(torch.full((count, 2), 64), 64, generator(7))
    ours = augmentation.train(image.expand(1, 64, 64, 3), torch.zeros(count, dtype=torch.long),
                              draws, PLAIN)
    torch.manual_seed(1)
    classic = transforms.Compose([transforms.RandomResizedCrop(32),
                                  transforms.RandomHorizontalFlip()])
    theirs = torch.stack([classic(image.permute(2, 0, 1)) for _ in range(count)]).float()
    for statistic in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3)), lambda x: x[:, :, 0, 0]):
        for channel in range(3):
            gap = largest_gap(statistic(ours)[:, channel].numpy(),
                              statistic(theirs)[:, channel].numpy())
            assert gap < 1.95 * math.sqrt(2 / count)


def test_squeezed_photographs_are_cropped_in_their_true_shape():
    """A wide photograph stored as a square: boxes keep torchvision's shape once they
    are stretched back."""
    sizes = torch.tensor([[90, 240]]).expand(3000, 2)
    augmentation = RandomResizedCrop(32)
    top, left, tall, wide, _ = augmentation.draw(sizes, 64, generator(8)).unbind(1)
    ratio = (wide * 240 / 64) / (tall * 90 / 64)
    # 3/4 to 4/3, and the rounding to pixels
    assert 0.70 < ratio.min() < 0.85 and 1.25 < ratio.max() < 1.45
    assert left.min() == 0 and (left + wide).max() == 64  # both ends of the photograph are reached
    assert top.min() == 0 and (top + tall).max() == 64
    assert (resample.to_stored(torch.tensor([[89, 239, 1, 1]]), torch.tensor([[90, 240]]),
                               8).tolist() == [[7, 7, 1, 1]])


@pytest.mark.parametrize(("side", "size"), [(64, 224), (64, 64), (256, 224)])
def test_test_time_is_resize_and_centre_crop(side, size):
    images = noise(3, side)
    augmentation = RandomResizedCrop(size)
    ours = augmentation.test(images, None, PLAIN)
    planes = functional.resize(images.permute(0, 3, 1, 2).float(), [round(size * 256 / 224)],
                               antialias=True)
    assert (ours.shape == (3, 3, size, size)
            and ours.is_contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(ours, functional.center_crop(planes, [size]), atol=0.02, rtol=0)


def test_test_time_stretches_squeezed_photographs_back():
    """Vertical stripes in a 64x128 photograph, stored as 64x64, have their width again."""
    stripes = (torch.arange(128) // 32 % 2 * 255).to(torch.uint8)
    stored = stripes[::2][None, None, :, None].expand(1, 64, 64, 3)
    result = RandomResizedCrop(56).test(stored, torch.tensor([[64, 128]]), PLAIN)[0, 0, 0]
    assert torch.equal(result.round()[[2, 26, 30, 54]], torch.tensor([255.0, 255.0, 0.0, 0.0]))
    square = RandomResizedCrop(56).test(stored, None, PLAIN)[0, 0, 0]
    assert torch.equal(square.round()[[2, 26, 30, 54]], torch.tensor([0.0, 255.0, 0.0, 255.0]))


# Batches


@pytest.mark.parametrize("augmentation", [PadCrop(16, 2), RandomResizedCrop(24)])
def test_an_epoch_is_a_function_of_seed_and_number(augmentation):
    dataset = dataset_of(noise(30, 16), augmentation)
    batches = TrainBatches(dataset, 8, seed=0)
    third = list(batches.epoch(3))
    torch.manual_seed(99)
    list(batches.epoch(0))
    state = torch.random.get_rng_state()
    assert same(list(batches.epoch(3)), third) and same(epoch(dataset, 3), third)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not same(epoch(dataset, 4), third) and not same(epoch(dataset, 3, seed=1), third)
    labels = torch.cat([y for _, y in third])
    assert sorted(labels.tolist()) == list(range(30)) and labels.tolist() != list(range(30))
    assert not torch.equal(labels, torch.cat([y for _, y in batches.epoch(4)]))


@pytest.mark.parametrize("augmentation", [PadCrop(16, 2), RandomResizedCrop(24)])
def test_images_that_stay_on_the_host_give_the_same_batches(augmentation):
    rows, sizes = torch.arange(29, -1, -2), torch.tensor([[20, 30]]).expand(15, 2)
    dataset = dataset_of(noise(30, 16), augmentation, rows, sizes)
    assert same(epoch(dataset, batch_size=4, resident_bytes=0), epoch(dataset, batch_size=4))


@pytest.mark.parametrize("augmentation", [PadCrop(16, 2), RandomResizedCrop(24)])
def test_a_row_of_the_split_is_the_row_of_its_image(augmentation):
    """A split of some rows gives, image by image, what a split of copies of these images gives."""
    images, rows = noise(30, 16), torch.arange(0, 30, 3)
    shared, copied = dataset_of(images, augmentation, rows), dataset_of(images[rows], augmentation)
    assert same(epoch(shared), epoch(copied))
    assert same(list(eval_batches(shared, shared.test)), list(eval_batches(copied, copied.test)))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU; crop_batch is compared on the CPU above"
)
@pytest.mark.parametrize("resident_bytes", [None, 0])
@pytest.mark.parametrize("augmentation", [PadCrop(16, 2), RandomResizedCrop(24)])
def test_a_gpu_sees_the_images_of_a_cpu(augmentation, resident_bytes):
    dataset = dataset_of(noise(30, 16), augmentation)
    gpu = epoch(dataset, device="cuda", resident_bytes=resident_bytes)
    one_level = 1.05 / 255 / min(STD)  # a CPU crops and resizes in uint8
    for (x, y), (x2, y2) in zip(epoch(dataset), gpu, strict=True):
        assert (x2.is_cuda and x2.is_contiguous(memory_format=torch.channels_last)
                and torch.equal(y, y2.cpu()))
        assert (x - x2.cpu()).abs().max() < one_level
    for (x, _), (x2, _) in zip(eval_batches(dataset, dataset.test),
                               eval_batches(dataset, dataset.test, "cuda"), strict=True):
        assert (x - x2.cpu()).abs().max() < one_level


class Recorder(PadCrop):
    """Draws the true sizes of the images, and gives them back as the batch."""

    def draw(self, sizes, side, generator):
        return sizes

    def train(self, prepared, rows, draws, normalise):
        return draws


def test_draws_belong_to_the_true_size_of_their_image():
    sizes = torch.stack([torch.arange(30), torch.arange(30) * 7], dim=1)
    for x, y in epoch(dataset_of(noise(30, 16), Recorder(16, 2), sizes=sizes)):
        assert torch.equal(x, sizes[y])


@pytest.mark.parametrize(("count", "world"), [(32, 2), (29, 2), (33, 3), (27, 3)])
def test_ranks_together_get_the_batches_of_one_process(count, world):
    dataset = dataset_of(noise(count, 16), PadCrop(16, 2))
    alone = epoch(dataset)
    ranks = [epoch(dataset, rank=rank, world=world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    for step, parts in enumerate(zip(*ranks, strict=True)):
        for rank, (x, y) in enumerate(parts):
            assert len(x) >= 2
            assert (torch.equal(x, alone[step][0][rank::world])
                    and torch.equal(y, alone[step][1][rank::world]))
        assert sum(len(x) for x, _ in parts) == len(alone[step][0])
    assert len(alone) - len(ranks[0]) == (1 if 0 < count % 8 < 2 * world and count % 8 > 1 else 0)


@pytest.mark.parametrize(("count", "steps", "images"), [(16, 2, 16), (18, 3, 18), (17, 2, 16)])
def test_a_last_batch_of_one_image_is_left_out(count, steps, images):
    batches = TrainBatches(dataset_of(noise(count, 16), PadCrop(16, 2)), 8, seed=0)
    assert (batches.steps, batches.images) == (steps, images)
    assert [len(x) for x, _ in batches.epoch(0)] == [8, 8, count - 16][:steps]


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(UsageError, match="batch size 1 is too small"):
        TrainBatches(dataset_of(noise(9, 16), PadCrop(16, 2)), 1, seed=0)
    with pytest.raises(UsageError, match=r"training split of 3 image\(s\) is too small"):
        TrainBatches(dataset_of(noise(3, 16), PadCrop(16, 2)), 8, seed=0, world=2)


def test_evaluation_is_in_order_and_plain():
    images = noise(21, 16)
    dataset = dataset_of(images, PadCrop(16, 2))
    batches = list(eval_batches(dataset, dataset.test, batch_size=10))
    assert [len(x) for x, _ in batches] == [10, 10, 1]
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(21))
    x = torch.cat([x for x, _ in batches])
    assert (batches[0][0].is_contiguous(memory_format=torch.channels_last)
            and x.dtype == torch.float32)
    torch.testing.assert_close(x[20], normalised(images[20].permute(2, 0, 1)), atol=2e-6, rtol=0)
