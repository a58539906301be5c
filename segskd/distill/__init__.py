"""Distillation: methods and phases, the feature store, the training loop, and runs.

`segskd.distill(…)` calls `segskd.api.distill`.
"""

from segskd.callable_packages import make_callable

make_callable(__name__)
