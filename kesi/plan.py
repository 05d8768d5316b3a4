"""What a recipe will give, before any training: sizes of every round, and the work of every stage.

    python -m kesi.plan --arch vgg16 --dataset cifar10 --method filter
    python -m kesi.plan --arch resnet34 --dataset tinyimagenet --method filter --csv
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

import models
from kesi import cli
from kesi.complexity import macs, parameters
from kesi.pruning.filters import pruned_widths
from kesi.pruning.weights import conv_weights, pruned_count
from kesi.recipes import Recipe, Stage


@dataclass(frozen=True)
class Size:
    """A network after a round (0: the baseline). ``macs`` are of one image, ``macs_saved`` is in percent."""

    round: int
    params: int
    nonzero_params: int
    macs: int
    macs_saved: float


@dataclass(frozen=True)
class StagePlan:
    """One training of the pipeline: its name, recipe and network."""

    name: str
    stage: Stage
    size: Size

    def work(self, train_images: int, teachers: Sequence[Size] = ()) -> float:
        """MACs of the whole stage: forward and twice that backward, and a forward of each teacher."""
        per_image = 3 * self.size.macs + sum(teacher.macs for teacher in teachers)
        return float(self.stage.epochs) * train_images * per_image


def sizes(recipe: Recipe, num_classes: int, image_size: int) -> list[Size]:
    """The sizes of a recipe's networks at ``image_size`` px, from the baseline to the last round."""
    cfg = list(models.ARCHITECTURES[recipe.arch].cfg)
    found: list[Size] = []
    for number in range(len(recipe.rounds) + 1):
        amount = recipe.rounds[number - 1] if number else None
        if number and recipe.method == "filter":
            cfg = pruned_widths(cfg, amount)
        with torch.device("meta"):
            model = models.create(recipe.arch, num_classes, cfg)
        params, zeros = parameters(model), 0
        if number and recipe.method == "weight":
            zeros = pruned_count(sum(weight.numel() for weight in conv_weights(model).values()), amount)
        cost = macs(model, image_size)
        first = found[0].macs if found else cost
        found.append(Size(number, params, params - zeros, cost, round(100 * (1 - cost / first), 2)))
    return found


def stages(recipe: Recipe, network_sizes: Sequence[Size], compare: bool) -> list[StagePlan]:
    """The trainings of a pipeline for one seed, in the order in which they run."""
    rounds = network_sizes[1:]
    found = [StagePlan("baseline", recipe.baseline, network_sizes[0])]
    found += [StagePlan(f"onecycle-{size.round}", recipe.retrain, size) for size in rounds]
    if compare:
        found += [StagePlan(f"usual-{size.round}", recipe.usual, size) for size in rounds]
    return [*found, StagePlan("kesi", recipe.distill, network_sizes[-1])]


def table(rows: Sequence[Size]) -> str:
    """The sizes as an aligned text table."""
    lines = [f"{'round':>5} {'params':>12} {'non-zero':>12} {'MACs':>15} {'MACs saved':>11}"]
    lines += [f"{row.round:>5} {row.params:>12,} {row.nonzero_params:>12,} {row.macs:>15,} "
              f"{row.macs_saved:>9.2f} %" for row in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = cli.parser(__doc__, "kesi.plan")
    cli.add_network(parser)
    parser.add_argument("--dataset", choices=cli.DATASETS, default="cifar10", help="default: %(default)s")
    parser.add_argument("--num-classes", type=int, metavar="N",
                        help="classes of an imagefolder (default: 10); other data sets know theirs")
    parser.add_argument("--image-size", type=int, metavar="PX", help="default: the data set's")
    cli.add_rounds(parser)
    parser.add_argument("--csv", action="store_true", help="print round,params,nonzero_params,macs,macs_saved")
    args = parser.parse_args(argv)
    family = "tinyimagenet" if args.dataset == "tinyimagenet" else "cifar"
    rows = sizes(cli.recipe_for(args, family), *cli.classes_and_size(args, family))
    if args.csv:
        writer = csv.DictWriter(sys.stdout, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    else:
        print(table(rows))


if __name__ == "__main__":
    cli.run(main)
