"""Views: figures by hand and by Pillow, and the same tensors every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from segskd.data.cards import Card
from segskd.data.transforms import ViewMaker, padded_size, unpad
from segskd.errors import UserError

Uint8 = npt.NDArray[np.uint8]
IGNORE = 11


def make_card(**changes: Any) -> Card:
    content = {
        "name": "two",
        "title": "two classes",
        "folder": "two",
        "classes": [{"name": name, "color": [i, i, i]} for i, name in enumerate("abc")],
        "splits": {"train": {"images": "{name}.png", "masks": "m/{name}.png"}},
        "ignore_index": IGNORE,
    }
    return Card.model_validate({**content, **changes})


# With this mean and standard deviation a value v becomes v / 255.
PLAIN = make_card(mean=(0, 0, 0), std=(1, 1, 1))


def random_pair(height: int, width: int, seed: int = 0) -> tuple[Uint8, Uint8]:
    """Noise, and a mask of 0, 2 and the ignore index in blocks: a mean of neighbours would give 1 or more."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    blocks = generator.choice(np.array([0, 2, IGNORE], dtype=np.uint8), size=(height // 4 + 1, width // 4 + 1))
    return image, np.kron(blocks, np.ones((4, 4), dtype=np.uint8))[:height, :width].copy()


def test_view_0_averages_blocks_and_takes_the_mask_at_pixel_centres() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[..., 0] = [[0, 4, 8, 8, 0, 0], [8, 12, 8, 8, 0, 0], [255] * 6, [255] * 6]
    image[0, 0, 2] = 200
    mask = np.array([[0] * 6, [0, 1, 0, 2, 0, IGNORE], [0] * 6, [0, 2, 0, 1, 0, 0]], dtype=np.uint8)
    pixels, classes = ViewMaker(PLAIN, (2, 3))(image, mask, "x", 0)
    expected = torch.tensor([[[6, 8, 0], [255, 255, 255]], [[0] * 3] * 2, [[50, 0, 0], [0, 0, 0]]]) / 255
    torch.testing.assert_close(unpad(pixels, (2, 3)), expected)
    # The centre of an output pixel is the corner between four; the one below and to its right is taken.
    assert unpad(classes, (2, 3)).tolist() == [[1, 2, IGNORE], [2, 1, 0]]


def test_view_0_averages_every_pixel_of_a_block() -> None:
    image = np.zeros((8, 12, 3), dtype=np.uint8)
    image[0, 0] = image[7, 11] = 160
    pixels, _ = ViewMaker(PLAIN, (2, 3))(image, np.zeros((8, 12), dtype=np.uint8), "x", 0)
    expected = torch.tensor([[10.0, 0, 0], [0, 0, 10]]).expand(3, 2, 3) / 255
    torch.testing.assert_close(unpad(pixels, (2, 3)), expected)


def test_later_views_average_too() -> None:
    dots = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), size=(512, 512))
    make = ViewMaker(PLAIN, (32, 32))
    for view in range(2, 6):
        pixels, _ = make(np.stack([dots] * 3, axis=-1), dots // 255, "x", view)
        # A mean of 100 or more such pixels deviates by 0.05 at most; a mean of the nearest four by 0.25.
        assert pixels.std() < 0.1


@pytest.mark.parametrize("sizes", [(36, 48, 19, 26), (37, 53, 45, 61), (64, 96, 64, 96), (360, 480, 192, 256)])
def test_masks_are_as_pillows_nearest(sizes: tuple[int, int, int, int]) -> None:
    height, width, *size = sizes
    image, mask = random_pair(height, width)
    _, classes = ViewMaker(PLAIN, (size[0], size[1]))(image, mask, "x", 0)
    expected = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    assert np.array_equal(classes[: size[0], : size[1]].numpy(), expected)


def test_no_view_invents_a_class() -> None:
    image, mask = random_pair(90, 120)
    make = ViewMaker(PLAIN, (45, 61))
    for view in range(12):
        assert set(make(image, mask, "x", view)[1].unique().tolist()) == {0, 2, IGNORE}


def test_normalisation() -> None:
    card = make_card(mean=(0.5, 0.25, 0.0), std=(0.25, 0.5, 2.0))
    image = np.full((32, 32, 3), (255, 51, 102), dtype=np.uint8)
    pixels, _ = ViewMaker(card, (32, 32))(image, np.zeros((32, 32), dtype=np.uint8), "x", 0)
    # (1 - 0.5) / 0.25, (0.2 - 0.25) / 0.5, (0.4 - 0) / 2
    expected = torch.tensor([2.0, -0.1, 0.2])[:, None, None].expand(3, 32, 32)
    torch.testing.assert_close(pixels, expected)


@pytest.mark.parametrize("view", [0, 1, 2, 3])
def test_padding_is_at_the_bottom_and_right(view: int) -> None:
    card = make_card()
    image = np.full((90, 120, 3), 255, dtype=np.uint8)
    pixels, classes = ViewMaker(card, (45, 61))(image, np.ones((90, 120), dtype=np.uint8), "x", view)
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == torch.float32
    assert classes.shape == (64, 64)
    assert classes.dtype == torch.int64
    assert (classes[:45, :61] == 1).all()
    assert (classes[45:] == IGNORE).all()
    assert (classes[:, 61:] == IGNORE).all()
    assert (pixels[:, :45, :61] > 0.5).all()
    assert (pixels[:, 45:] == 0).all()
    assert (pixels[:, :, 61:] == 0).all()


def test_unpad_gives_back_what_was_there() -> None:
    logits = torch.arange(2 * 5 * 64 * 96).reshape(2, 5, 64, 96)
    assert torch.equal(unpad(logits, (45, 61)), logits[:, :, 0:45, 0:61])


@pytest.mark.parametrize(("size", "padded"), [((32, 64), (32, 64)), ((33, 1), (64, 32)), ((360, 480), (384, 480))])
def test_padded_size(size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert padded_size(size) == padded


def test_view_1_mirrors_view_0() -> None:
    image, mask = random_pair(96, 128)
    make = ViewMaker(PLAIN, (32, 64))
    (plain, plain_mask), (mirrored, mirrored_mask) = make(image, mask, "x", 0), make(image, mask, "x", 1)
    assert torch.equal(mirrored, plain.flip(-1))
    assert torch.equal(mirrored_mask, plain_mask.flip(-1))
    assert not torch.equal(mirrored, plain)


def test_a_view_is_always_the_same() -> None:
    image, mask = random_pair(64, 96)
    make, other = ViewMaker(PLAIN, (64, 96), seed=3), ViewMaker(PLAIN, (64, 96), seed=3)
    first = {view: make(image, mask, "a", view) for view in range(6)}
    for view in (5, 0, 3, 2, 1, 4):
        make(image, mask, "b", view)
        for again in (make, other):
            pixels, classes = again(image, mask, "a", view)
            assert torch.equal(pixels, first[view][0])
            assert torch.equal(classes, first[view][1])


def test_views_differ_by_number_name_and_seed() -> None:
    image, mask = random_pair(64, 96)
    make = ViewMaker(PLAIN, (64, 96), seed=3)
    made = [make(image, mask, "a", view)[0] for view in range(6)]
    made += [make(image, mask, "b", 2)[0], ViewMaker(PLAIN, (64, 96), seed=4)(image, mask, "a", 2)[0]]
    equal = [(i, j) for i in range(len(made)) for j in range(i) if torch.equal(made[i], made[j])]
    assert equal == []


def test_plain_views_depend_on_the_image_alone() -> None:
    image, mask = random_pair(64, 96)
    for view in (0, 1):
        pixels, _ = ViewMaker(PLAIN, (64, 96), seed=3)(image, mask, "a", view)
        assert torch.equal(pixels, ViewMaker(PLAIN, (64, 96), seed=4)(image, mask, "b", view)[0])


def test_image_and_mask_move_together() -> None:
    mask = np.zeros((96, 96), dtype=np.uint8)
    mask[20:60, 10:50] = 1
    image = np.repeat(np.where(mask == 1, 220, 30).astype(np.uint8)[..., None], 3, axis=2)
    make = ViewMaker(PLAIN, (64, 64))
    for view in range(2, 10):
        pixels, classes = make(image, mask, "x", view)
        bright = pixels.mean(0) > (pixels.min() + pixels.max()) / 2
        assert (bright == (classes == 1)).float().mean() > 0.97
        assert not torch.equal(classes, make(image, mask, "x", 0)[1])


def test_an_image_without_mask_is_view_0() -> None:
    image, mask = random_pair(90, 120)
    make = ViewMaker(make_card(), (45, 61))
    assert torch.equal(make.image_only(image), make(image, mask, "x", 0)[0])


def test_sizes_that_differ_are_the_users_to_mend() -> None:
    image, mask = random_pair(64, 96)
    with pytest.raises(UserError, match="image 'street' and its mask differ in size"):
        ViewMaker(PLAIN, (64, 96))(image, mask[:-1], "street", 0)
