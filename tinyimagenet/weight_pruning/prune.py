"""Step 2: set single weights to zero: the network gets sparse. Needs no images.

    python tinyimagenet/weight_pruning/prune.py --model runs/mine/baseline
"""

from kesi.cli import entry, steps

if __name__ == "__main__":
    entry.run(lambda: steps.prune(__doc__, "tinyimagenet", "weight"))
