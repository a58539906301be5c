"""Export: networks as files that run without SegSKD.

`segskd.export(…)` calls `segskd.api.export`.
"""

from segskd.callable_packages import make_callable

make_callable(__name__)
