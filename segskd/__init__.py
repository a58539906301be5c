"""SegSKD: stagewise knowledge distillation of segmentation networks (arXiv 1911.06786)."""

import os

# Albumentations asks a server for newer releases when it is imported; nothing here may need a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Torch's threads that wait do not spin for long: beside another busy process, training would take many times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
