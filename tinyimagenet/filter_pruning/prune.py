"""Step 2: remove whole filters: the network gets smaller. Needs no images.

    python tinyimagenet/filter_pruning/prune.py --model runs/mine/baseline
"""

from kesi.cli import entry, steps

if __name__ == "__main__":
    entry.run(lambda: steps.prune(__doc__, "tinyimagenet", "filter"))
