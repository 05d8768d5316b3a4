"""Images handed over in Python: all forms that are understood, and one line for all others."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision.transforms import functional

from doors import ROOT
from kesi.data import TrainBatches, eval_batches
from kesi.data.arrays import from_arrays
from kesi.data.augment import PadCrop
from kesi.system.errors import UsageError


def pixels(count: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


IMAGES, LABELS = pixels(24, 3, 12, 16), torch.arange(24) % 3  # (N, C, H, W)
TEST = pixels(6, 3, 12, 16), torch.arange(6) % 3
WANTED = from_arrays((IMAGES, LABELS), TEST).describe()


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return len(LABELS)

    def __getitem__(self, place):  # as torchvision with ToTensor gives them
        return functional.to_tensor(IMAGES[place].permute(1, 2, 0).numpy()), int(LABELS[place])


class Pictures(Items):  # as torchvision's ImageFolder with loader=Image.open gives them
    def __init__(self, mode):
        self.mode = mode

    def __getitem__(self, place):
        return Image.new(self.mode, (16, 12)), int(LABELS[place])


class Stream(IterableDataset):
    def __iter__(self):
        return ((functional.to_pil_image(image), label)
                for image, label in zip(IMAGES, LABELS.numpy(), strict=True))


def unstacked(items):
    return tuple(zip(*items, strict=True))


@pytest.mark.parametrize("train", [
    (IMAGES.permute(0, 2, 3, 1), LABELS),
    (IMAGES.numpy(), LABELS.tolist()),
    [IMAGES.numpy()[::-1].copy()[::-1], LABELS.numpy()[::-1].astype(">i8")[::-1]],
    (IMAGES.numpy().astype(">f4") / 255, LABELS.numpy().astype("u2")),
    (IMAGES.float() / 255, LABELS.to(torch.uint8)),
    (IMAGES.half() / 255, LABELS),
    (torch._neg_view(-(IMAGES.double() / 255)), torch._neg_view(-LABELS)),
    (torch.nn.Parameter(IMAGES.float() / 255), LABELS),
    TensorDataset(IMAGES, LABELS),
    Items(), Stream(),
    DataLoader(Items(), batch_size=5),
    DataLoader(Items(), batch_size=5, shuffle=True, drop_last=True),
    DataLoader(Items(), batch_sampler=BatchSampler(RandomSampler(range(24)), 5, drop_last=False)),
    DataLoader(Items(), sampler=range(24)), DataLoader(Stream(), 5, collate_fn=unstacked),
    DataLoader(Items() + Items(), sampler=RandomSampler(IMAGES)),
    [(IMAGES[:12], LABELS[:12]), (IMAGES[12:], LABELS[12:])],
    ((IMAGES[i:i + 7], LABELS[i:i + 7]) for i in range(0, 24, 7)),
])
def test_the_same_images_in_any_form_are_the_same_data_set(train):
    assert from_arrays(train, TEST).describe() == WANTED


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 12, 20), (4, 16, 9), (12, 24, 16), (20, 20)])
@pytest.mark.parametrize("resident", [None, 0])
def test_any_channels_and_any_shape_are_augmented_as_by_torchvision(shape, resident):
    images, labels = pixels(30, *shape), torch.arange(30) % 5
    data = from_arrays((images, labels), (images, labels), padding=2)
    channels, height, width = data.shape
    assert (height, width) == shape[-2:] and len(data.mean) == channels
    assert data.image_size == (height if height == width else (height, width))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    batches = TrainBatches(data, 10, seed=3, resident_bytes=resident)
    order, draws = batches._drawn(0)
    x = torch.cat([x for x, _ in batches.epoch(0)])
    assert x.shape == (30, channels, height, width)
    for result, row, (top, left, flip) in zip(x, order.tolist(), draws.tolist(), strict=True):
        image = images[row].view(channels, height, width)
        expected = functional.crop(functional.pad(image, [2]), top, left, height, width)
        expected = functional.hflip(expected) if flip else expected
        torch.testing.assert_close(result, (expected / 255 - mean) / std, atol=1e-5, rtol=1e-4)
    x, y = next(eval_batches(data, data.test))
    expected = (images.view(30, channels, height, width) / 255 - mean) / std
    torch.testing.assert_close(x, expected.float(), atol=1e-5, rtol=1e-4)
    assert torch.equal(y, labels)


def test_a_given_mean_and_std_are_those_of_the_batches():
    data = from_arrays((IMAGES, LABELS), TEST, mean=(0, 0, 0), std=np.ones(3), val_fraction=0.25)
    assert data.mean == (0.0, 0.0, 0.0) and data.std == (1.0, 1.0, 1.0) and len(data.val) == 6
    x, _ = next(eval_batches(data, data.test))
    torch.testing.assert_close(x, TEST[0] / 255)
    assert data.augmentation == PadCrop((12, 16), 1)


@pytest.mark.parametrize("train, says", [
    (3, "are a int: give a pair"),
    ({"images": IMAGES}, "are a dict: give a pair"),
    ((IMAGES, LABELS, LABELS), "come with a Tensor: give pairs"),
    ((1, 2), "have shape ()"),
    ((IMAGES, None), "labels cannot be read"),
    ((IMAGES, np.array(["cat"] * 24)), "labels cannot be read"),
    ((IMAGES, np.array([None] * 24)), "labels cannot be read: they are not numbers"),
    ((IMAGES, [[0], [1, 2]]), "labels cannot be read"),
    ((np.array([[1], "a"], dtype=object), LABELS), "images cannot be read"),
    ((IMAGES.to_sparse(), LABELS), "it is sparse"),
    ((IMAGES.to("meta"), LABELS), "images cannot be read"),
    ((IMAGES, LABELS[:3]), "one whole number for each of the 24 images"),
    ((IMAGES, LABELS.float()), "one whole number"),
    ((IMAGES[:0], LABELS[:0]), "one whole number"),
    ((IMAGES, LABELS - 1), "go from -1 to 1"),
    ((IMAGES, LABELS + 10**9), "there would be 1000000003 classes, but there are 30 images"),
    ((IMAGES, torch.full((24,), 2**64 - 1, dtype=torch.uint64)), "labels go from -1"),
    ((IMAGES.int(), LABELS), "are int32: give them as uint8"),
    ((IMAGES.bool(), LABELS), "are bool: give them as uint8"),
    ((IMAGES.float(), LABELS), "not in 0 to 1: give them as uint8, or scaled"),
    ((IMAGES.float() * torch.nan, LABELS), "not in 0 to 1"),
    ((torch.rand(24, 3, 12, 16), LABELS), "values between those of 8 bits"),
    ((pixels(24, 16, 12, 16), LABELS), "first or their last dimension"),
    ((pixels(24, 3, 7, 16), LABELS), "are 7x16 px"),
    ((pixels(24, 3, 16, 16), LABELS), "16x16 px in 3 channels and the test images 12x16 px"),
    ([(IMAGES[:1], LABELS[:1]), (IMAGES[:1, :, :8], LABELS[:1])], "not of one size"),
    ([], "there are no training images"),
    (TensorDataset(IMAGES, torch.rand(24)), "it has to give (image, whole label)"),
    (TensorDataset(IMAGES), "cannot be read from a TensorDataset"),
    *((Pictures(mode), f"images hold one of Pillow's mode {mode}: convert it to RGB")
      for mode in ("1", "P", "PA", "LA", "RGBA", "CMYK", "HSV")),
    (DataLoader(Pictures("P"), 6, collate_fn=unstacked), "mode P"),
    (DataLoader(Items(), sampler=SubsetRandomSampler(range(24))), "change (SubsetRandomSampler)"),
    (DataLoader(Items(), sampler=RandomSampler(range(99))), "cannot be read from a Subset"),
    (DataLoader(Items(), batch_sampler=BatchSampler(WeightedRandomSampler([1] * 24, 24), 5, False)),
     "change (WeightedRandomSampler)"),
    (DataLoader(Items(), batch_sampler=SubsetRandomSampler([[0, 1], [2, 3]])), "may change"),
    (DataLoader(Items(), num_workers=2, in_order=False), "change (in_order=False)"),
    (Pictures("I;16"), "are uint16: give them as uint8"),  # which convert() would make white
])
def test_what_is_wrong_with_images_is_said_in_one_line(train, says):
    refused(says, train, TEST)


@pytest.mark.parametrize("options, says", [
    ({"classes": 2}, "2 classes are numbered 0 to 1"),
    ({"classes": 10**9}, "there would be 1000000000 classes"),
    ({"classes": "abc"}, "give their names in a list"),
    ({"classes": 2.5}, "give their names in a list"),
    ({"padding": -1}, "padding -1"), ({"padding": "2"}, "padding '2'"),
    ({"val_fraction": "a"}, "val_fraction 'a'"), ({"val_fraction": 1}, "val_fraction 1"),
    ({"mean": 0.5}, "give 3 number(s), one a channel"), ({"mean": "grey"}, "mean"),
    ({"mean": (0, 0, float("inf"))}, "finite"), ({"std": (0, 1, 1)}, "above 0"),
])
def test_what_is_wrong_with_an_option_is_said_in_one_line(options, says):
    refused(says, (IMAGES, LABELS), TEST, **options)


def refused(says, *arguments, **options):
    with pytest.raises(UsageError) as error:
        from_arrays(*arguments, **options)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_huge_label_takes_no_memory():
    code = ("import resource, torch\nfrom kesi.data.arrays import from_arrays\n"
            "images = torch.zeros(20, 8, 8, 3, dtype=torch.uint8)\n"
            "pair = images, torch.full((20,), 10**9)\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: from_arrays(pair, pair)\n"
            "except Exception as error: print(error)\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)")
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True,
                         cwd=ROOT)
    message, megabytes = run.stdout.splitlines()
    assert "1000000001 classes" in message and int(megabytes) < 100
