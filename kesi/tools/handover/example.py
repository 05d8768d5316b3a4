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


def prepared(path):
    """An image file as the network takes it: float32 (1, 3, S, S), RGB from 0 to 1."""
    image = Image.open(path)
    image.draft(None, (2 * about["resize"][0],) * 2)  # a large JPEG is decoded at a fraction
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    for size in about["resize"]:  # of the shorter side; the middle square is kept
        wide, tall = (size * side // min(image.size) for side in image.size)
        left, top = round((wide - size) / 2), round((tall - size) / 2)
        x, y = image.width / wide, image.height / tall
        box = left * x, top * y, (left + size) * x, (top + size) * y
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    left = round((image.width - about["crop"]) / 2)
    image = image.crop((left, left, left + about["crop"], left + about["crop"]))
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / 255


for path in sys.argv[1:]:
    logits = session.run(None, {"images": prepared(path)})[0][0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares)[:3]
    print(f"{path}: " + ", ".join(f"{about['classes'][k] or k} {shares[k]:.2%}" for k in best))
