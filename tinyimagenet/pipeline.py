"""All five steps: train, prune, retrain with one cycle, repeat, distil the snapshots into the last one.

    python tinyimagenet/pipeline.py --arch resnet18 --dataset tinyimagenet --method filter --compare --seeds 0 1 2
"""

from kesi import cli, pipeline_command

if __name__ == "__main__":
    cli.run(lambda: pipeline_command.run_pipeline(__doc__, "tinyimagenet"), resumes=True)
