"""Step 1: train the baseline network.

    python cifar/train.py --arch resnet56 --dataset cifar10 --save runs/mine/baseline
"""

from kesi.cli import entry, steps

if __name__ == "__main__":
    entry.run(lambda: steps.train(__doc__, "cifar"), resumes=True)
