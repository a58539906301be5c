"""Types of the functions by which long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Called with the number of pieces that are done and the number of all pieces."""
OnActivity = Callable[[str, int, int | None], None]
"""Called with what is being done, how far it is, and how much it is in all (bytes or images; None if unknown)."""
