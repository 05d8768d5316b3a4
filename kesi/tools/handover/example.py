"""What the network in model.onnx says of image files: python example.py photo.jpg more.png

Needs three packages: pip install onnxruntime numpy pillow
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")))
about = {key.removeprefix("kesi."): json.loads(value)
         for key, value in session.get_modelmeta().custom_metadata_map.items()}


def width_height(size):
    """Of a square, or of (height, width)."""
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def prepared(path):
    """An image file as the network takes it: float32 (1, C, H, W), RGB or grey from 0 to 1."""
    image = Image.open(path)
    # a large JPEG is decoded at a fraction
    image.draft(None, tuple(2 * side for side in width_height(about["resize"][0])))
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if len(about["mean"]) == 1:
        image = image.convert("L")
    for wide, tall in map(width_height, about["resize"]):  # is just covered; the middle is kept
        new, old = max((wide, image.width), (tall, image.height), key=lambda one: one[0] / one[1])
        whole = [new * side // old for side in image.size]
        left, top = round((whole[0] - wide) / 2), round((whole[1] - tall) / 2)
        x, y = image.width / whole[0], image.height / whole[1]
        box = left * x, top * y, (left + wide) * x, (top + tall) * y
        image = image.resize((wide, tall), Image.Resampling.BILINEAR, box)
    wide, tall = width_height(about["crop"])
    left, top = round((image.width - wide) / 2), round((image.height - tall) / 2)
    image = image.crop((left, top, left + wide, top + tall))
    pixels = np.asarray(image, dtype=np.float32).reshape(tall, wide, -1)
    return pixels.transpose(2, 0, 1)[None] / 255


for path in sys.argv[1:]:
    logits = session.run(None, {"images": prepared(path)})[0][0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares)[:3]
    print(f"{path}: " + ", ".join(f"{about['classes'][k] or k} {shares[k]:.2%}" for k in best))
