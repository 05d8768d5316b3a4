"""The results that the paper publishes, as data, so that a report can hold its own beside them.

Source: Le, Vo, Thoai, "Paying more attention to snapshots of Iterative Pruning: Improving Model
Compression via Ensemble Distillation", BMVC 2020, arXiv 2006.11487: the results on CIFAR (filter
pruning, weight pruning) and on Tiny-ImageNet (filter pruning). All of it is after five rounds.
Nothing here is measured by this code.
"""

from collections.abc import Collection
from dataclasses import dataclass

from kesi import models
from kesi.data import INFO
from kesi.data.split import height_width, spoken_size
from kesi.method import recipes
from kesi.method.snapshot import BASELINE, KESI

ROUNDS = 5

CRITERIA = {"filter": "PFEC", "weight": "MWP"}  # what the paper calls its two criteria


def criterion_label(method: str, criterion: str | None) -> str:
    """What tables call a way to prune: "filter pruning",
    with its criterion where it is another one."""
    by = "" if criterion == recipes.METHODS[method] else f" by {criterion}"
    return f"{method} pruning{by}"


def abbreviation(method: str, criterion: dict) -> str | None:
    """The paper's abbreviation of a criterion, as recipes describe it; None of other criteria."""
    return CRITERIA[method] if criterion.get("name") == recipes.METHODS[method] else None


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper: parameters in millions (non-zero ones), MACs, test accuracy in percent.

    The paper gives MACs either as the percentage saved or in giga; what it does not give is None.
    ``std`` is over the paper's own runs, None for its baselines.
    """

    params_m: float
    macs_saved: float | None
    macs_g: float | None
    mean: float
    std: float | None


_RETRAININGS = "usual", "onecycle"  # in the order of its rows

# Accuracy: (baseline, then mean and std of: usual retraining, one-cycle, KESI).
# "Results on CIFAR, filter pruning": network -> baseline params (M), params (M), MACs saved (%),
# accuracies.
_CIFAR_FILTER = {
    "resnet56": (0.85, 0.28, 61.5, {
        "cifar10": (93.42, (90.35, 0.36), (92.31, 0.26), (93.34, 0.05)),
        "cifar100": (71.07, (64.91, 0.14), (69.03, 0.24), (70.95, 0.11))}),
    "resnet110": (1.73, 0.39, 65.38, {
        "cifar10": (94.01, (91.51, 0.08), (93.24, 0.16), (94.01, 0.22)),
        "cifar100": (72.35, (65.44, 0.04), (69.54, 0.07), (72.12, 0.11))}),
    "preresnet164": (1.70, 0.31, 69.23, {
        "cifar10": (95.06, (92.05, 0.11), (94.15, 0.06), (94.30, 0.53)),
        "cifar100": (76.35, (69.20, 0.04), (73.99, 0.06), (75.84, 0.32))}),
    "wrn-16-8": (10.96, 2.48, 64.52, {
        "cifar10": (95.62, (94.61, 0.09), (94.91, 0.04), (95.68, 0.12)),
        "cifar100": (79.57, (73.82, 0.10), (76.46, 0.27), (79.01, 0.20))}),
    "vgg16": (14.99, 2.71, 45.16, {
        "cifar10": (94.23, (93.88, 0.12), (94.10, 0.09), (94.59, 0.09)),
        "cifar100": (73.24, (68.37, 0.09), (71.95, 0.04), (73.52, 0.20))}),
}

# "Results on CIFAR, weight pruning": network -> non-zero params (M), accuracies without the
# baseline, which is the one above. PreResNet-164 is not in this table, nor are MACs.
_CIFAR_WEIGHT = {
    "resnet56": (0.29, {
        "cifar10": ((92.69, 0.02), (93.41, 0.08), (93.90, 0.10)),
        "cifar100": ((69.53, 0.07), (70.46, 0.30), (72.27, 0.09))}),
    "resnet110": (0.36, {
        "cifar10": ((93.02, 0.04), (93.69, 0.17), (94.44, 0.11)),
        "cifar100": ((68.90, 0.08), (71.59, 0.30), (73.12, 0.25))}),
    "wrn-16-8": (2.53, {
        "cifar10": ((95.47, 0.07), (95.55, 0.05), (95.97, 0.05)),
        "cifar100": ((77.92, 0.16), (78.82, 0.11), (80.08, 0.06))}),
    "vgg16": (1.02, {
        "cifar10": ((93.47, 0.22), (93.53, 0.10), (94.01, 0.06)),
        "cifar100": ((68.39, 0.21), (71.74, 0.15), (73.91, 0.09))}),
}

# "Results on Tiny-ImageNet, filter pruning": network -> (params (M), MACs (G)) before and after,
# accuracies.
_TINYIMAGENET_FILTER = {
    "resnet18": ((11.01, 1.82), (2.71, 0.83), (67.22, (61.06, 0.32), (64.70, 0.33), (66.87, 0.26))),
    "resnet34": ((21.39, 3.68), (5.40, 1.57), (68.81, (64.93, 0.15), (67.26, 0.21), (70.02, 0.43))),
}

# Rounds 1 to 5 of filter pruning from the authors' notes of March 2020, single runs that are not
# part of the paper. They are no one-cycle results: retrained at a learning rate of 0.1 with a step
# to a tenth after epochs 20 and 30 of 40. Second: the ensemble of the five pruned networks, with
# summed logits.
NOTED_ROUNDS = {
    ("resnet56", "cifar10"): ((93.05, 93.21, 93.06, 92.95, 92.56), 94.27),
    ("resnet56", "cifar100"): ((70.69, 70.56, 70.30, 69.57, 69.98), 74.25),
    ("resnet110", "cifar10"): ((93.41, 93.39, 93.41, 93.39, 93.45), 94.59),
    ("resnet110", "cifar100"): ((71.39, 71.67, 71.47, 71.35, 70.52), 75.56),
}

# Where a printed figure does not follow from the paper's own definitions.
REMARKS = {
    ("resnet18", "tinyimagenet"): "The paper prints 11.01 M parameters for the baseline; "
                                  "the network that it describes, with 200 classes, has 11.28 M.",
}


def published(arch: str, dataset: str, method: str) -> dict[str, PaperRow]:
    """The paper's rows by kind of stage for a network, a data set, "filter" or "weight", if any."""
    if dataset == "tinyimagenet" and method == "filter" and arch in _TINYIMAGENET_FILTER:
        before, after, (baseline, *pruned) = _TINYIMAGENET_FILTER[arch]
        first = PaperRow(before[0], None, before[1], baseline, None)
        rest = [PaperRow(after[0], None, after[1], mean, std) for mean, std in pruned]
    elif method == "filter" and dataset in _CIFAR_FILTER.get(arch, (0, 0, 0, {}))[3]:
        whole, small, saved, accuracies = _CIFAR_FILTER[arch]
        baseline, *pruned = accuracies[dataset]
        first = PaperRow(whole, 0.0, None, baseline, None)
        rest = [PaperRow(small, saved, None, mean, std) for mean, std in pruned]
    elif method == "weight" and dataset in _CIFAR_WEIGHT.get(arch, (0, {}))[1]:
        small, accuracies = _CIFAR_WEIGHT[arch]
        whole, _, _, baselines = _CIFAR_FILTER[arch]
        first = PaperRow(whole, None, None, baselines[dataset][0], None)
        rest = [PaperRow(small, None, None, mean, std) for mean, std in accuracies[dataset]]
    else:
        return {}
    return dict(zip((BASELINE, *_RETRAININGS, KESI), [first, *rest], strict=True))


def departures(used: dict, data: dict, precisions: Collection[str] = (),
               pretrained: str | None = None) -> list[str]:
    """Where a run differs from what the paper did, one phrase each.

    ``used``: the recipe as Recipe.describe() gave it; ``data``: as Dataset.describe() gave it;
    ``precisions`` that stages ran in; ``pretrained``: weights that the baseline began from.
    """
    arch, dataset = used["arch"], used["dataset"]
    network = models.ARCHITECTURES.get(arch)
    if network is None or network.graph is not None:  # the paper has no recipe for one of one's own
        return []
    phrases = []
    if standard_of_paper(dataset) and not published(arch, dataset, used["method"]):
        phrases.append(f"{arch} with {used['method']} pruning is not in its table")
    standard = recipes.recipe(arch, dataset, used["method"], used["family"]).describe()
    for kind, training in used["trainings"].items():
        wanted = standard["trainings"].get(kind)
        if wanted is not None:
            phrases += [f"{_named(kind)} {key.replace('_', ' ')} "
                        f"{training.get(key)} instead of {value}"
                        for key, value in ({"ema": 0.0, "mixup": False} | wanted).items()
                        if key not in recipes.CODE and training.get(key, value) != value]
    for key in ("criterion", "loss"):
        old, new = standard[key], used.get(key) or {}
        for name in old if old != new else ():
            if name not in recipes.CODE and old[name] != new.get(name):
                what = "temperature" if name == "temperature" else key
                phrases.append(f"{what} {new.get(name)} instead of {old[name]}")
    if objective := used.get("objective"):  # which is said where it is another than the paper's
        phrases.append(f"objective {objective.get('name')} instead of the cross-entropy")
    if used["rounds"] != standard["rounds"]:
        phrases.append("other rounds of pruning")
    size = INFO[dataset].image_size if dataset in INFO else None
    seen = data.get("image_size", size)
    if size is not None and height_width(seen) != height_width(size):
        phrases.append(f"images of {spoken_size(seen)} px instead of {spoken_size(size)}")
    if held_out := (data.get("images") or {}).get("val"):
        phrases.append(f"{held_out:,} training images held out")
    phrases += [f"precision {precision}" for precision in sorted(set(precisions) - {"fp32"})]
    return phrases + ["started from pretrained weights"] * (pretrained is not None)


def _named(kind: str) -> str:
    """What a kind of training is called."""
    others = {BASELINE: "baseline", KESI: "distillation"}
    return others.get(kind) or f"{recipes.retraining_named(kind).label} retraining"


def standard(dataset: str) -> str:
    """Whose settings departures() compares with:
    the paper knows nothing of other data sets than its own."""
    return "the paper's settings" if standard_of_paper(dataset) else "KESI's own settings"


def standard_of_paper(dataset: str) -> bool:
    """Whether the paper reports on a data set."""
    return dataset in INFO and INFO[dataset].in_paper
