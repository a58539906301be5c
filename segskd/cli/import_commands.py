"""`import`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from segskd.cli.flags import JsonFlag
from segskd.cli.output import show
from segskd.errors import UserError


def import_network(
    file: Positional[str],
    out: Path,
    arch: str | None = None,
    encoder: str | None = None,
    classes: int | None = None,
    channels: int | None = None,
    bgr: bool = False,
    outputs: tuple[int, ...] = (),
    json: JsonFlag = False,
) -> None:
    """Import a network into a folder that every command takes, for instance as a teacher.

    Args:
        file: A file of weights (.pth, .pt, .ckpt, .safetensors); with --bgr or --outputs also a folder, run or hub id.
        out: The folder to write: config.json and model.safetensors.
        arch: The network that the file is for: unet …, or torchvision's deeplabv3_resnet50, deeplabv3_resnet101,
            deeplabv3_mobilenet_v3_large, fcn_resnet50, fcn_resnet101 or lraspp_mobilenet_v3_large.
        encoder: Its encoder, such as resnet34; torchvision's have theirs in their names.
        classes: Its outputs (taken from its weights).
        channels: Channels of its images (taken from its weights).
        bgr: It was trained on BGR images; reverse the channels of its first layer, so that it takes RGB.
        outputs: For each class of the card, in order, the number of its output, from 0; other outputs are dropped.
    """
    from segskd.models.build import describe, output_classes
    from segskd.models.importing import Adjustments, NetworkSpec, import_model, needs_network

    if arch is None and (encoder, classes, channels) != (None, None, None):
        raise UserError(needs_network(Path(file)))
    spec = NetworkSpec(arch, encoder, classes, channels) if arch else None
    made = import_model(file, spec, Adjustments(bgr, outputs), out)
    network, count = describe(made.model), output_classes(made.model)
    text = f"{out}: {network}, {count} outputs"
    if made.left_out:
        text += f"; {len(made.left_out)} keys of the file don't belong to it, such as {made.left_out[0]}"
    content = {"model": str(out), "network": network, "classes": count, "left_out": made.left_out}
    show(text, content, json)
