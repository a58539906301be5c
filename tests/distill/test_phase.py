"""The order of training, and a phase's module."""

from __future__ import annotations

import torch

from segskd.distill.training.module import epoch_batches, steps_an_epoch


def batches(epoch: int, seed: int = 0, images: int = 36, views: int = 4, batch: int = 8) -> list[torch.Tensor]:
    return list(epoch_batches(seed, "encoder.0", epoch, range(images), images, views, steps_an_epoch(images, batch)))


def test_an_epoch_sees_every_image_once_in_one_view() -> None:
    numbers = torch.cat(batches(epoch=6))
    assert sorted(numbers.tolist()) == list(range(2 * 36, 3 * 36))  # 6 mod 4 = view 2


def test_batches_differ_in_size_by_at_most_one() -> None:
    assert [len(batch) for batch in batches(epoch=0)] == [8, 7, 7, 7, 7]
    assert [len(batch) for batch in batches(epoch=0, images=9)] == [5, 4]
    assert steps_an_epoch(36, 8) == 5


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = torch.cat(batches(epoch=4))
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(first, torch.cat(batches(epoch=4)))
    assert not torch.equal(first, torch.cat(batches(epoch=8)))
    assert not torch.equal(first, torch.cat(batches(epoch=4, seed=1)))
