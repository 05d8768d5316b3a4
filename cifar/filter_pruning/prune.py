"""Step 2: remove whole filters: the network gets smaller. Needs no images.

    python cifar/filter_pruning/prune.py --model runs/mine/baseline --save runs/mine/onecycle-1
"""

from kesi.cli import entry, steps

if __name__ == "__main__":
    entry.run(lambda: steps.prune(__doc__, "cifar", "filter"))
