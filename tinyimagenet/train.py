"""Step 1: train the baseline network.

    python tinyimagenet/train.py --arch resnet18 --dataset tinyimagenet --save runs/mine/baseline
"""

from kesi import cli, commands

if __name__ == "__main__":
    cli.run(lambda: commands.train(__doc__, "tinyimagenet"), resumes=True)
