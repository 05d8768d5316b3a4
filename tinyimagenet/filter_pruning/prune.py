"""Step 2: remove whole filters: the network gets smaller. Needs no images.

    python tinyimagenet/filter_pruning/prune.py --model runs/mine/baseline --save runs/mine/onecycle-1
"""

from kesi import cli, commands

if __name__ == "__main__":
    cli.run(lambda: commands.prune(__doc__, "tinyimagenet", "filter"))
