"""Step 2: set single weights to zero: the network gets sparse. Needs no images.

    python tinyimagenet/weight_pruning/prune.py --model runs/mine/baseline --save runs/mine/onecycle-1
"""

from kesi import cli, commands

if __name__ == "__main__":
    cli.run(lambda: commands.prune(__doc__, "tinyimagenet", "weight"))
