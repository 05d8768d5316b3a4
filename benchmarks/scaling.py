"""How cost grows: with the number of images, with the batch size,
with the number of teachers (ours only).

What is expected: time is proportional to images; a batch costs less an image until the machine is
full; distilling costs the student's step and the teachers' forward passes, nothing else.
"""

import statistics
from collections.abc import Callable

import torch

from benchmarks.rates import median_seconds
from benchmarks.sides import Job, Side, ensemble, networks
from kesi.method.teachers import mean_probabilities
from kesi.system import execution

BATCHES = (32, 64, 128, 256, 512)
EPOCHS_OF = (1, 2, 4)  # times the fewest images
FEWEST_BATCHES = 4
TURNS = 3


def measure(arch: str, device: str, batch: int, seconds: float, quick: bool) -> dict:
    """Three lists: "images", "batches" and "teachers", an entry for each number."""
    turns = 2 if quick else TURNS
    return {"images": against_images(arch, device, batch, turns), "batches":
            against_batch_size(arch, device, (8, 16) if quick else BATCHES, turns, seconds),
            "teachers": against_teachers(arch, device, batch, turns, seconds)}


def _alternated(sides: dict, counts: dict, turns: int) -> dict:
    """The median seconds of each side, which take turns of ``counts`` steps; times for as many."""
    for side in sides.values():
        side.turn(1)
    times: dict = {key: [] for key in sides}
    for _ in range(turns):
        for key, side in sides.items():
            took = side.turn(counts[key])
            times[key].append(took["seconds"] * counts[key] / took["steps"])
    return {key: statistics.median(own) for key, own in times.items()}


def against_images(arch: str, device: str, batch: int, turns: int) -> list[dict]:
    """Seconds of an epoch against the number of its images."""
    numbers = [factor * FEWEST_BATCHES * batch for factor in EPOCHS_OF]
    sides = {number: Side(Job("ours", "retrain", arch, batch, number, device=device))
             for number in numbers}
    seconds = _alternated(sides, {number: number // batch for number in numbers}, turns)
    return [{"images": number, "seconds": seconds[number],
             "ms_an_image": 1e3 * seconds[number] / number} for number in numbers]


def against_batch_size(arch: str, device: str, batches: tuple[int, ...], turns: int,
                       seconds: float) -> list[dict]:
    """Seconds of a step against its images."""
    sides = {batch: Side(Job("ours", "retrain", arch, batch, 4 * batch, device=device))
             for batch in batches}
    count = max(1, round(seconds))
    found = _alternated(sides, dict.fromkeys(batches, count), turns)
    return [{"batch": batch, "step_seconds": found[batch] / count,
             "images_per_second": batch * count / found[batch]} for batch in batches]


def against_teachers(arch: str, device: str, batch: int, turns: int, seconds: float) -> list[dict]:
    """Seconds of a step of distilling from 0 to 6 teachers,
    and what the forward passes alone predict."""
    precision = execution.set_up(device, "auto", deterministic=False)
    images = torch.randn((batch, 3, 32, 32)).to(device=device, memory_format=torch.channels_last)
    members = networks(arch, 32)
    forwards = [median_seconds(_forward(member, images, precision), torch.device(device),
                               seconds / 4) for member in members]
    numbers = range(len(members) + 1)
    sides = {number: Side(Job("ours", "distill", arch, batch, 8 * batch, device=device,
                              teachers=number)) for number in numbers}
    count = max(1, round(seconds / 2))
    found = _alternated(sides, dict.fromkeys(numbers, count), turns)
    student = found[0] / count
    return [{"teachers": number, "step_seconds": found[number] / count,
             "predicted_seconds": student + sum(forwards[:number])} for number in numbers]


def _forward(member: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], object]:
    """A teacher's forward pass, as it runs within the step: on a GPU from a CUDA graph."""
    teacher = ensemble([member], str(images.device))

    def call() -> None:
        with execution.autocast(str(images.device), precision, cache=not images.is_cuda):
            mean_probabilities(teacher.logits(images), 5.0)

    if not images.is_cuda:
        return call
    stream = torch.cuda.Stream(images.device)
    stream.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(images.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return lambda _keep=teacher: graph.replay()  # the graph reads its weights


def tables(results: dict) -> str:
    """The three lists in Markdown."""
    lines = ["| images an epoch | seconds | ms an image |", "| ---: | ---: | ---: |"]
    lines += [f"| {row['images']:,} | {row['seconds']:.3f} | {row['ms_an_image']:.3f} |"
              for row in results["images"]]
    lines += ["", "| batch | ms a step | images/s |", "| ---: | ---: | ---: |"]
    lines += [f"| {row['batch']} | {row['step_seconds'] * 1e3:,.1f} | "
              f"{row['images_per_second']:,.0f} |" for row in results["batches"]]
    lines += ["", "| teachers | ms a step | predicted: student + forwards | measured / predicted |",
              "| ---: | ---: | ---: | ---: |"]
    lines += [f"| {row['teachers']} "
              f"| {row['step_seconds'] * 1e3:,.1f} | {row['predicted_seconds'] * 1e3:,.1f} | "
              f"{row['step_seconds'] / row['predicted_seconds']:.3f} |"
              for row in results["teachers"]]
    return "\n".join(lines)
