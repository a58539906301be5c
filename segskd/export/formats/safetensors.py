"""Weights and JSON, as segmentation_models_pytorch saves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segskd.export.formats import ExportInput, ExportLimits, Format

if TYPE_CHECKING:
    import numpy as np


def write(given: ExportInput, folder: Path) -> None:
    """Copies weights and config, and narrow.py for a pruned network.

    The config no longer names pretrained weights of the encoder, since loading the network must not download any.
    """
    from segskd.standalone import narrow

    config = json.loads((given.checkpoint / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "encoder_weights": None}, indent=2) + "\n")
    shutil.copyfile(given.checkpoint / "model.safetensors", folder / "model.safetensors")
    if narrow.PRUNED in config:
        shutil.copyfile(narrow.__file__, folder / Path(narrow.__file__).name)


def network(folder: Path, threads: int = 0) -> Any:
    """Opens the network in `folder`."""
    import torch

    if "pruning_ratio" in json.loads((folder / "config.json").read_text()):
        import narrow  # config.json names the layers of a pruned network, the weights tell how many channels they have

        model = narrow.load(folder)
    else:
        import segmentation_models_pytorch

        model = segmentation_models_pytorch.from_pretrained(folder).eval()
    torch.set_num_threads(threads or torch.get_num_threads())
    with torch.no_grad():
        model.to(memory_format=torch.channels_last)

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = (
                model(torch.from_numpy(image).to(memory_format=torch.channels_last)).contiguous().numpy()
            )
        return logits

    return run


FORMAT = Format(
    title="weights and JSON for segmentation_models_pytorch",
    files=("model.safetensors", "config.json"),
    packages=("segmentation-models-pytorch", "torch"),
    limits=ExportLimits(agreement=1.0, difference=0.0),
    write=write,
    network=network,
    place=1,
    traced=False,
    hub_library="segmentation-models-pytorch",
)
