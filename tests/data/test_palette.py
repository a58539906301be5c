"""Colours: told apart by every eye. Distances come from colour formulas written out anew, and OpenCV's CIELAB."""

from __future__ import annotations

from itertools import combinations

import cv2
import numpy as np
import pytest

from segskd.data.palette import OKABE_ITO, colour_distances, distinct_colours, voc_colours

# Machado et al. 2009, table 1, severity 1.0, copied for this test.
SIMULATIONS = {
    "normal": "1 0 0  0 1 0  0 0 1",
    "protan": "0.152286 1.052583 -0.204868  0.114503 0.786281 0.099216  -0.003882 -0.048116 1.051998",
    "deutan": "0.367322 0.860646 -0.227968  0.280085 0.672501 0.047413  -0.011820 0.042940 0.968881",
    "tritan": "1.255528 -0.076749 -0.178779  -0.078411 0.930809 0.147602  0.004733 0.691367 0.303900",
}


def lab_by_opencv(colour: tuple[int, int, int], vision: str) -> np.ndarray:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    matrix = np.array(SIMULATIONS[vision].split(), dtype=float).reshape(3, 3)
    seen = np.clip(matrix @ linear, 0, 1).astype(np.float32).reshape(1, 1, 3)
    return cv2.cvtColor(seen, cv2.COLOR_LRGB2Lab).reshape(3)


def worst(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    return min(
        float(np.linalg.norm(lab_by_opencv(first, vision) - lab_by_opencv(second, vision))) for vision in SIMULATIONS
    )


def test_the_first_eight_are_okabes_and_itos() -> None:
    assert distinct_colours(8) == list(OKABE_ITO)
    assert distinct_colours(2) == [(0, 0, 0), (230, 159, 0)]
    # As published: vermillion is #D55E00, reddish purple #CC79A7.
    assert [bytes(colour).hex() for colour in OKABE_ITO] == [
        *("000000", "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7")
    ]


def test_no_two_of_eight_are_close_in_any_vision() -> None:
    assert min(worst(a, b) for a, b in combinations(distinct_colours(8), 2)) > 15.5


def test_no_two_of_thirty_are_close_in_any_vision() -> None:
    assert min(worst(a, b) for a, b in combinations(distinct_colours(30), 2)) > 14


def test_distances_are_those_of_another_library() -> None:
    colours = [*distinct_colours(30), (255, 255, 255), (255, 0, 0)]
    found = colour_distances(colours, colours)
    for (i, a), (j, b) in combinations(enumerate(colours), 2):
        assert found[i, j] == pytest.approx(worst(a, b), abs=0.05)


def test_a_further_colour_is_the_farthest_of_all_on_the_grid() -> None:
    before, ninth = distinct_colours(8), distinct_colours(9)[8]
    own = min(worst(ninth, colour) for colour in before)
    generator = np.random.default_rng(0)
    for red, green, blue in generator.integers(0, 16, (60, 3)) * 17:
        assert min(worst((int(red), int(green), int(blue)), colour) for colour in before) <= own + 0.3


def test_fewer_are_the_beginning_of_more_and_all_differ() -> None:
    most = distinct_colours(254)
    assert len(set(most)) == 254
    assert distinct_colours(60) == most[:60]
    assert {type(channel) for colour in most for channel in colour} == {int}


def test_the_colour_map_of_pascal_voc() -> None:
    # From the development kit's documentation: 1 aeroplane, 8 cat, 15 person, 20 tv monitor, 255 border.
    colours = voc_colours(256)
    assert colours[0] == (0, 0, 0)
    assert colours[1] == (128, 0, 0)
    assert colours[8] == (64, 0, 0)
    assert colours[15] == (192, 128, 128)
    assert colours[20] == (0, 64, 128)
    assert colours[255] == (224, 224, 192)
