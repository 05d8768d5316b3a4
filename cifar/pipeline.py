"""All five steps: train, prune, retrain with one cycle, repeat,
distil the snapshots into the last one.

    python cifar/pipeline.py --arch resnet56 --dataset cifar10 --compare --seeds 0 1 2
"""

from kesi.cli import entry, pipeline

if __name__ == "__main__":
    entry.run(lambda: pipeline.run_pipeline(__doc__, "cifar"), resumes=True)
