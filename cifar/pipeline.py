"""All five steps: train, prune, retrain with one cycle, repeat, distil the snapshots into the last one.

    python cifar/pipeline.py --arch resnet56 --dataset cifar10 --method filter --compare --seeds 0 1 2
"""

from kesi import cli, pipeline_command

if __name__ == "__main__":
    cli.run(lambda: pipeline_command.run_pipeline(__doc__, "cifar"), resumes=True)
