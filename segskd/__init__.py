"""SegSKD: stagewise knowledge distillation of segmentation networks (arXiv 1911.06786)."""

import os

# Albumentations asks a server for newer releases when it is imported; nothing here may need a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Threads that wait for one another sleep, so that other processes get the cores: beside a busy process a run is seven
# times as fast. They don't sleep at once, since waking them some hundred times a step costs a quarter of the speed.
# GNU's OpenMP, which PyTorch has on Linux, reads this when it is loaded; SegSKD is imported before PyTorch.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="10000")

__version__ = "0.1.0"
