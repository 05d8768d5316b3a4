"""The formats of kesi.export: a network as the content of a file, and such a file as something that runs."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kesi import latency, packed
from kesi.errors import UsageError
from kesi.inputs import Inputs

FORMATS = ("onnx", "pt2", "safetensors")
OPSET = 18

Runner = Callable[[torch.Tensor], torch.Tensor]  # images (B, 3, S, S) -> logits (B, C)


class Normalised(nn.Module):
    """A network behind its normalisation: takes RGB images scaled to 0..1, (N, 3, H, W)."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - self.mean) / self.std)


def encode(network: nn.Module, inputs: Inputs, kind: str, about: dict[str, Any], sparse: bool = False) -> bytes:
    """The content of a file of a format; ``about`` goes to its metadata with the classes and the scaling."""
    about = {"classes": list(inputs.classes), "mean": inputs.mean, "std": inputs.std,
             "image_size": inputs.image_size, **about}
    if kind == "safetensors":
        return packed.save_bytes(network, about, sparse)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporters, about their own insides
        return (_onnx if kind == "onnx" else _pt2)(network, inputs.image_size, about)


def _onnx(network: nn.Module, image_size: int, about: dict[str, Any]) -> bytes:
    _need("onnx", "onnxscript", "onnxruntime")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(network, (latency.noise(2, image_size),), dynamo=True, opset_version=OPSET,
                                input_names=["images"], output_names=["logits"],
                                dynamic_shapes=({0: batch},), verbose=False)
    model = program.model_proto
    for key, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"kesi.{key}", json.dumps(value)
    return model.SerializeToString()


def _pt2(network: nn.Module, image_size: int, about: dict[str, Any]) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (latency.noise(2, image_size),), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"kesi.json": json.dumps(about)})
    return file.getvalue()


def runner(path: Path, kind: str) -> Runner:
    """An exported file, loaded the way its users will, as a function of images (B, 3, S, S)."""
    if kind == "onnx":
        _need("onnxruntime")
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    if kind == "pt2":
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = torch.export.load(file).module()
    else:
        network = packed.load_safetensors(path)
    return lambda images: torch.inference_mode()(network)(images)


def _need(*packages: str) -> None:
    """Raises UsageError that says what to install where one of the packages is missing."""
    for package in packages:
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise UsageError(f'{error.name} is not installed: pip install -e ".[export]"') from error
