"""Discriminators keep what older versions, which called them critics, drew and saved."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from segskd.distill.planning.phase import TEACHER, Comparison, Phase
from segskd.distill.training import discriminators
from segskd.distill.training.discriminators import Discriminator, make_discriminators
from segskd.distill.training.loop import Loop


def test_a_seed_gives_the_first_weights_that_it_gave_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminators, "feature_shapes", lambda *_: {"encoder.0": (3, 4, 4)})
    phase = Phase("encoder.0", ("encoder.0",), 1, (Comparison(("encoder.0",), discriminator=1.0),))
    networks: Any = {TEACHER: None}
    made = make_discriminators([phase], networks, (64, 64), 7)
    torch.manual_seed(int.from_bytes(hashlib.sha256(b"7/encoder.0/critics").digest()[:6], "big"))
    for ours, expected in zip(made.parameters(), Discriminator(3).parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_the_best_weights_of_an_older_run_are_loaded() -> None:
    module = nn.ModuleDict({"discriminators": nn.Linear(1, 1), "stages": nn.Linear(1, 1)})
    older = {
        name.replace("discriminators.", "critics."): torch.full_like(value, 3.0)
        for name, value in module.state_dict().items()
    }
    loop: Any = SimpleNamespace(module=module)
    Loop.load_weights(loop, older)
    assert all(bool((value == 3.0).all()) for value in module.state_dict().values())
