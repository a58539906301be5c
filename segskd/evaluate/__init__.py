"""Evaluation: scores, masks and comparisons of networks.

`segskd.evaluate(…)` calls `segskd.api.evaluate`.
"""

from segskd.called import make_called

make_called(__name__)
