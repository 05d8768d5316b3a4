"""Damaged and hostile image files: refused in one line, or decoded,
and never at the price of the memory."""

import io
import itertools
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from doors import ROOT
from kesi.data.decode import Storage, decode
from kesi.system.errors import KesiError


def encoded(kind):
    """A small photograph-like file of every kind that is read."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, 36, 3), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
    return file.getvalue()


KINDS = {"BMP": "bmp", "GIF": "gif", "JPEG": "jpg", "PNG": "png", "PPM": "ppm", "TIFF": "tif",
         "WEBP": "webp"}


@settings(max_examples=300, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(kind=st.sampled_from(sorted(KINDS)), cut=st.floats(0, 1) | st.none(),
       flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
                      max_size=12), squeeze=st.booleans())
def test_any_damaged_image_is_refused_in_one_line_or_decoded(tmp_path_factory, kind, cut, flips,
                                                             squeeze):
    content = bytearray(encoded(kind))
    for place, bits in flips:
        content[int(place * min(len(content), 400))] ^= bits  # headers, mostly
    path = tmp_path_factory.mktemp("image") / f"a.{KINDS[kind]}"
    path.write_bytes(content if cut is None else content[:int(cut * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        try:
            found = decode(path, Storage(16, squeeze))
        except KesiError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert found.pixels.shape == (16, 16, 3) and found.pixels.dtype == np.uint8


def claiming(kind, width, height):
    """A file of a few bytes whose header claims this many pixels."""
    if kind == "png":
        def chunk(name, data):
            return (struct.pack(">I", len(data)) + name + data
                    + struct.pack(">I", zlib.crc32(name + data)))
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = (chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
                  + chunk(b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + chunks
    if kind == "ppm":
        return f"P6 {width} {height} 255\n".encode() + bytes(100)
    header = struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 1, 1, 0,
                         0)
    return b"BM" + header + bytes(100)


@pytest.mark.parametrize("kind, size", [
    *itertools.product(["png", "ppm", "bmp"], [(60_000, 60_000), (2_000_000_000, 1)]),
    ("real png", (30_000, 3_000))])
def test_an_image_bomb_is_refused_before_its_pixels_take_memory(tmp_path, kind, size):
    path = tmp_path / f"bomb.{kind[-3:]}"
    if kind == "real png":  # 0.1 MB that would become 270
        Image.new("L", size).save(path)
    else:
        path.write_bytes(claiming(kind, *size))
    code = ("import resource, sys; from pathlib import Path; from kesi.data.decode import Storage, "
            "decode\nfrom kesi.system.errors import KesiError\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: decode(Path(sys.argv[1]), Storage(32, False))\n"
            "except KesiError as error: print(error)\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)")
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code, path], text=True,
                         capture_output=True, check=True, cwd=ROOT)
    message, megabytes = run.stdout.splitlines()
    assert str(path) in message and int(megabytes) < 100
