"""Evaluation: scores, masks and comparisons of networks.

`segskd.evaluate(…)` calls `segskd.api.evaluate`.
"""

from segskd.callable_packages import make_callable

make_callable(__name__)
