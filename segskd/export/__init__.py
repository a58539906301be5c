"""Export: networks as files that run without SegSKD.

`segskd.export(…)` calls `segskd.api.export`.
"""

from segskd.called import make_called

make_called(__name__)
