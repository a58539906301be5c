"""Distillation: methods and phases, the feature store, the training loop, and runs.

`segskd.distill(…)` calls `segskd.api.distill`.
"""

from segskd.called import make_called

make_called(__name__)
