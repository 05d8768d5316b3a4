"""The formats of kesi export: a network as the content of a file, and such a file as something that
runs.
"""

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kesi import checkpoints, models
from kesi.checkpoints import safety
from kesi.data.split import Size
from kesi.method.pruning.weights import conv_weights
from kesi.method.sizes import channels_of
from kesi.method.snapshot import digest_of
from kesi.models import Network
from kesi.system.errors import KesiError, UsageError, first_line
from kesi.tools import latency
from kesi.tools.inputs import Inputs
from kesi.tools.sparse import pack, unpack

FORMATS = ("onnx", "pt2", "safetensors")

OPSET = 18

Runner = Callable[[torch.Tensor], torch.Tensor]  # images (B, C, H, W) -> logits (B, classes)


class Normalised(nn.Module):
    """A network behind its normalisation: takes images scaled to 0..1, (N, C, H, W)."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        self.image_channels = len(mean)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - self.mean) / self.std)


def encode(network: nn.Module, inputs: Inputs, kind: str, about: dict[str, Any],
           sparse: bool = False) -> bytes:
    """The content of a file of a format; ``about``, plain values, goes to its metadata."""
    if kind == "safetensors":
        return save_bytes(network, about, sparse)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporters, about their own insides
        try:
            return (onnx_bytes if kind == "onnx" else _pt2)(network, inputs.image_size, about)
        except (KesiError, MemoryError):
            raise
        except Exception as error:  # of torch's exporter, about somebody else's network: anything
            raise KesiError(f"torch cannot export this network as {kind}: {first_line(error)}; "
                            "its weights can be written as safetensors") from error


def onnx_bytes(network: nn.Module, image_size: Size, about: dict[str, Any]) -> bytes:
    need("onnx", "onnxscript", "onnxruntime")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        network, (latency.noise(2, image_size, channels_of(network)),), dynamo=True,
        opset_version=OPSET, input_names=["images"], output_names=["logits"],
        dynamic_shapes=({0: batch},), verbose=False)
    model = program.model_proto
    for key, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"kesi.{key}", json.dumps(value)
    return model.SerializeToString()


def quantised(content: bytes, images: torch.Tensor) -> bytes:
    """An ONNX file in int8: static quantisation by onnxruntime, in its QDQ form.

    ``images`` (N, C, H, W), as the network takes them, tell the range of every activation. Weights
    get a scale for each filter; the metadata stays. Raises UsageError where a package is missing,
    KesiError where onnxruntime cannot do it.
    """
    need("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self):
            self.waiting = iter(images.split(32))

        def get_next(self):
            batch = next(self.waiting, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        whole, ready, done = (str(Path(folder) / name) for name in ("a.onnx", "b.onnx", "c.onnx"))
        Path(whole).write_bytes(content)
        try:
            try:
                quant_pre_process(whole, ready)
            except Exception:  # its inference of shapes does not know every operation: without it
                quant_pre_process(whole, ready, skip_symbolic_shape=True)
            # Unsigned activations are the fast ones on CPUs. Weights of seven bits: without VNNI,
            # the sum of two products of eight bits each may not fit its sixteen.
            quantize_static(ready, done, Batches(), quant_format=QuantFormat.QDQ, per_channel=True,
                            activation_type=QuantType.QUInt8, reduce_range=True)
            model = onnx.load(done)
        except MemoryError:
            raise
        except Exception as error:  # of onnxruntime, about somebody else's network: anything
            raise KesiError(f"onnxruntime cannot quantise this network: {first_line(error)}; leave "
                            "--int8 out") from error
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load_from_string(content).metadata_props)
    return model.SerializeToString()


def _pt2(network: nn.Module, image_size: Size, about: dict[str, Any]) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    images = latency.noise(2, image_size, channels_of(network))
    program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"kesi.json": json.dumps(about)})
    return file.getvalue()


def runner(path: Path | bytes, kind: str) -> Runner:
    """An exported file, loaded the way its users will, as a function of images (B, C, H, W).

    Of an ONNX file its content will do.
    """
    if kind == "onnx":
        need("onnxruntime")
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        session = onnxruntime.InferenceSession(
            path if isinstance(path, bytes) else str(path), options,
            providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    if kind == "pt2":
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = torch.export.load(file).module()
    else:
        network = load_safetensors(path)
    return lambda images: torch.inference_mode()(network)(images)


def need(*packages: str, extra: str = "export") -> None:
    """Raises UsageError that says what to install where one of the packages is missing."""
    for package in packages:
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise UsageError(f'{error.name} is not installed: '
                             f'pip install -e ".[{extra}]"') from error


FORMAT, VERSION = "kesi-safetensors", "1"

PLAIN = ("format", "version", "arch")  # of the metadata; the rest is JSON

DIGEST = "weights"  # of the tensors, as in a checkpoint; files of before have none


def save_bytes(model: Network, about: dict[str, Any], sparse: bool = False) -> bytes:
    """A network as the content of a safetensors file; ``about`` goes to its metadata beside the
    architecture.

    Raises UsageError where safetensors is not installed.
    """
    # copies, since safetensors takes no memory twice: of a module with two names
    tensors = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
               for name, value in model.state_dict().items()}
    whole, packed = dict(tensors), []
    for name in conv_weights(model) if sparse else ():
        if bool((tensors[name] == 0).any()):
            weight = tensors.pop(name)
            packed.append(name)
            tensors |= {f"{name}.{part}": value for part, value in pack(weight).items()}
            whole[name] = weight + 0.0  # what is packed has no zero with a sign
    metadata = {"format": FORMAT, "version": VERSION, "arch": model.arch,
                "num_classes": model.num_classes, "cfg": model.cfg, "sparse": packed,
                **about, DIGEST: digest_of(whole)}
    text = {key: value if key in PLAIN else json.dumps(value) for key, value in metadata.items()}
    return _safetensors().torch.save(tensors, text)


def load_safetensors(path: str | Path) -> Network:
    """The network in a file of save_bytes(), dense or sparse, in eval mode on the CPU.

    Raises UsageError for a missing file, a missing safetensors or a network of one's own that is
    not registered, KesiError for a file that is damaged or not of this kind.
    """
    return load_with_metadata(path)[0]


def load_with_metadata(path: str | Path) -> tuple[Network, dict[str, Any]]:
    """load_safetensors() and what the file says: classes, mean, std, image_size and the like."""
    safetensors = _safetensors()
    if not Path(path).is_file():
        raise UsageError(f"no such file: {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            text = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise KesiError(f"{path} is damaged or not a safetensors file: {error}") from error
    if text.get("format") != FORMAT or text.get("version") != VERSION:
        raise KesiError(f"{path} was not written by kesi export (version {VERSION} of its format)")
    try:
        about = {key: value if key in PLAIN else json.loads(value) for key, value in text.items()}
        arch, cfg = about["arch"], about["cfg"]
        checkpoints.require(arch, path, cfg)
        # no widths of a network of one's own: none were known where it was written
        own = models.ARCHITECTURES[arch].graph is not None
        model = models.create(arch, about["num_classes"], None if own and not cfg else cfg)
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        for name in about["sparse"]:
            parts = {part: tensors.pop(f"{name}.{part}") for part in ("values", "bits", "gaps")
                     if f"{name}.{part}" in tensors}
            tensors[name] = unpack(parts, shapes[name])
        safety.check_weights(Path(path), tensors)
        if about.pop(DIGEST, None) not in (None, digest_of(tensors)):
            raise KesiError(f"{path} is damaged: its weights do not match their checksum")
        model.load_state_dict(tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise KesiError(f"{path} is damaged: {first_line(error)}") from error
    checkpoints.warn_of_other_code(path, arch, about.get("code"))
    return model.eval(), about


def _safetensors():
    need("safetensors", "safetensors.torch")
    import safetensors.torch
    return safetensors
