"""Masks of images by the network in this folder: python predict.py IMAGE … [--out DIR]

Writes NAME_mask.png for each image, at its own size, and prints where it lies; pixel values are places in card.json's
classes, shown in their colours. Masks of images of one name get a number. Needs bands.py, NumPy, Pillow and the runtime
of the file beside it: onnxruntime, openvino, or torch (and segmentation-models-pytorch for model.safetensors).
"""

import argparse
import json
import sys
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image


def network(folder, threads=0):
    """The network in `folder`, a function from its input to logits float32 (1, C, h, w); 0 threads: all."""
    if (folder / "model.onnx").exists():
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        return lambda image: session.run(["logits"], {"image": image})[0]
    if (folder / "model.xml").exists():
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        settings |= json.loads((folder / "card.json").read_text())["runtime_settings"]
        compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
        return lambda image: compiled(image, share_inputs=True, share_outputs=True)["logits"]
    import torch

    if (folder / "model.pt2").exists():
        model = torch.export.load(folder / "model.pt2").module()
    elif "pruning_ratio" in json.loads((folder / "config.json").read_text()):
        import narrow  # config.json tells a pruned network's layers, the weights how many channels these have

        model = narrow.load(folder)
    else:
        import segmentation_models_pytorch

        model = segmentation_models_pytorch.from_pretrained(folder).eval()
    torch.set_num_threads(threads or torch.get_num_threads())
    with torch.no_grad():
        model.to(memory_format=torch.channels_last)

    def logits(image):
        with torch.inference_mode():
            return model(torch.from_numpy(image).to(memory_format=torch.channels_last)).contiguous().numpy()

    return logits


def mask(run, image, card):
    """Classes uint8 (H, W) of an image (H, W, channels), uint8 or float32 from 0 to 1, at its own size."""
    height, width = card["size"]
    x = resized(image.astype(np.float32).transpose(2, 0, 1), height, width).transpose(1, 2, 0)
    halves = image.shape[:2] == (2 * height, 2 * width)  # here OpenCV rounds halves up, and elsewhere to even numbers
    x = x * 255 if image.dtype != np.uint8 else np.floor(x + 0.5) if halves else np.rint(x)
    if card["input"] == "uint8":  # the file normalises and pads by itself
        x = x.astype(np.uint8)[None]
    else:
        x = ((x / 255 - card["mean"]) / card["std"]).astype(np.float32).transpose(2, 0, 1)[None]
        x = np.pad(x, ((0, 0), (0, 0), (0, -height % card["size_multiple"]), (0, -width % card["size_multiple"])))
    logits = run(x)[0, : len(card["classes"]), :height, :width]
    return resized(logits, image.shape[0], image.shape[1], area=False).argmax(0).astype(np.uint8)


def resized(channels, height, width, area=True):
    """(C, H, W) to (C, height, width): bilinear, or as OpenCV's INTER_AREA where `area` and a side shrinks."""
    sides = [(channels.shape[1], height), (channels.shape[2], width)]
    shrinks = [new < old for old, new in sides]
    weights = between if not (area and any(shrinks)) else shares if all(new <= old for old, new in sides) else mixed
    rows, columns = (weights(old, new) for old, new in sides)
    return rows @ channels @ columns.T


def shares(old, new):
    """Weights (new, old): how much of each old pixel lies in each new one, as OpenCV's INTER_AREA."""
    edges, places = np.arange(new + 1) * (old / new), np.arange(old)
    covered = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return (covered.clip(0) * (new / old)).astype(np.float32)


def mixed(old, new):
    """Weights (new, old) that INTER_AREA takes where one side shrinks and the other grows."""
    places = np.arange(new)
    first = np.floor(places * (old / new))
    part = places + 1 - (first + 1) * (new / old)
    part = np.where(part <= 0, 0, part - np.floor(part))[:, None]
    ahead = np.minimum(first + 1, old - 1)[:, None]
    return ((np.arange(old) == first[:, None]) * (1 - part) + (np.arange(old) == ahead) * part).astype(np.float32)


def between(old, new):
    """Weights (new, old): linear between pixel centres, as OpenCV's INTER_LINEAR."""
    centres = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
    return (1 - np.abs(centres[:, None] - np.arange(old))).clip(0).astype(np.float32)


def main():
    import bands  # lies beside this file

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    folder = Path(__file__).parent
    card = json.loads((folder / "card.json").read_text())
    run = network(folder)
    given.out.mkdir(parents=True, exist_ok=True)
    taken = {path.resolve() for path in given.images}
    unread = 0
    for path in given.images:
        try:
            image = bands.read(path, card["channels"], card["white"])
        except Exception as error:  # Pillow has many kinds for what is damaged
            print(f"can't use {path}: {error}", file=sys.stderr)
            unread += 1
            continue
        drawn = Image.fromarray(mask(run, image, card))
        drawn.putpalette([value for one in card["classes"] for value in one["color"]])
        names = (f"{path.stem}{number}_mask.png" for number in chain([""], (f"-{n}" for n in count(2))))
        target = next(given.out / name for name in names if (given.out / name).resolve() not in taken)
        taken.add(target.resolve())
        drawn.save(target)
        print(target)
    return 2 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
