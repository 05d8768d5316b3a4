"""What the network in model.onnx says of image files: python example.py photo.jpg more.png

Needs three packages: pip install onnxruntime numpy pillow
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(__file__.removesuffix("example.py") + "model.onnx")
said = session.get_modelmeta().custom_metadata_map
classes, mean, crop, resize = (json.loads(said[f"kesi.{key}"]) for key in (
    "classes", "mean", "crop", "resize"))
crop, *resize = (np.broadcast_to(size, 2)[::-1] for size in (crop, *resize))  # (width, height)
for path in sys.argv[1:]:
    image = Image.open(path)
    image.draft(None, tuple(2 * resize[0]))  # a large JPEG is decoded at a fraction
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey of 16 bits, of which the upper 8 count
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.convert("L" if len(mean) == 1 else "RGB")
    for size in resize:  # which the image just covers; the middle is kept
        whole = np.array(image.size)
        most = np.argmax(size / whole)
        scaled = size[most] * whole // whole[most]
        start = np.round((scaled - size) / 2)
        box = np.concatenate([start, start + size]) * np.tile(whole / scaled, 2)
        image = image.resize(size, Image.Resampling.BILINEAR, box.tolist())
    start = np.round((np.array(image.size) - crop) / 2).astype(int)
    image = image.crop((*start, *start + crop))
    pixels = np.asarray(image, np.float32).reshape(1, *crop[::-1], -1).transpose(0, 3, 1, 2) / 255
    logits = session.run(None, {"images": pixels})[0][0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares)[:3]
    print(f"{path}: " + ", ".join(f"{classes[k] or k} {shares[k]:.2%}" for k in best))
