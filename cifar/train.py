"""Step 1: train the baseline network.

    python cifar/train.py --arch resnet56 --dataset cifar10 --save runs/mine/baseline
"""

from kesi import cli, commands

if __name__ == "__main__":
    cli.run(lambda: commands.train(__doc__, "cifar"), resumes=True)
