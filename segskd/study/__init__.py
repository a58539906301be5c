"""Studies: grids of runs (methods × students × fractions × rules × seeds), their table and their curve."""

from segskd.study.reader import list_studies, read_study

__all__ = ["list_studies", "read_study"]
