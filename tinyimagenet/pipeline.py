"""All five steps: train, prune, retrain with one cycle, repeat,
distil the snapshots into the last one.

    python tinyimagenet/pipeline.py --arch resnet18 --compare --seeds 0 1 2
"""

from kesi.cli import entry, pipeline

if __name__ == "__main__":
    entry.run(lambda: pipeline.run_pipeline(__doc__, "tinyimagenet"), resumes=True)
