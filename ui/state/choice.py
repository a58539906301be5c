"""The choice of the Data tab, on which the Distill tab trains: a card and a subset."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from segskd.config import SubsetRule


@dataclass(frozen=True)
class Choice:
    """A card by its name or absolute path, and the subset: a fraction, or names picked by hand."""

    card: str = "scenes"
    fraction: float = 0.1
    rule: SubsetRule = "random"
    seed: int = 0
    names: tuple[str, ...] | None = None
    teacher: str | None = None
    """The teacher that `diverse` and `hardest` use: a run's name or a model's folder. Distill proposes it, too."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the page."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any] | None) -> Choice:
        """The choice from what `as_dict` gave; the default for None."""
        content = dict(content or {})
        names = content.pop("names", None)
        return cls(**content, names=tuple(names) if names is not None else None)

    def recipe_parts(self) -> dict[str, Any]:
        """The parts of a recipe that are chosen here."""
        by_hand = self.rule == "hand"
        subset = {"names": list(self.names or ())} if by_hand else {"fraction": self.fraction}
        return {"data": {"card": self.card}, "subset": {"rule": self.rule, **subset}, "seed": self.seed}
