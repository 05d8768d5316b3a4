"""Step 1: train the baseline network.

    python tinyimagenet/train.py --arch resnet18 --dataset tinyimagenet --save runs/mine/baseline
"""

from kesi.cli import entry, steps

if __name__ == "__main__":
    entry.run(lambda: steps.train(__doc__, "tinyimagenet"), resumes=True)
