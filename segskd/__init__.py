"""SegSKD: stagewise knowledge distillation of segmentation networks (arXiv 1911.06786)."""

import os

# Albumentations asks a server for newer releases when it is imported; nothing here may need a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
