"""Pictures as data URLs, which need no further request."""

from __future__ import annotations

import base64

import cv2

from segskd.data.pixels import Uint8


def data_url(content: bytes, kind: str) -> str:
    """An encoded picture; `kind` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def jpeg_url(picture: Uint8, quality: int) -> str:
    """A picture RGB (H, W, 3); `quality` as OpenCV counts it, 0 to 100."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"OpenCV could not encode a picture of shape {picture.shape}")
    return data_url(encoded.tobytes(), "jpeg")
