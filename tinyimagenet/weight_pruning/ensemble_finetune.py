"""Step 5: distil the ensemble of all snapshots into the last one.

    python tinyimagenet/weight_pruning/ensemble_finetune.py --refine runs/mine/onecycle-5

Teachers: --teachers on the command line, or checkpoint_paths below, or else the baseline and all
snapshots that --refine descends from.
"""

from kesi.cli import entry, steps

# Checkpoints of the teachers, for those who would rather edit a list than type one.
checkpoint_paths: list[str] = []

if __name__ == "__main__":
    entry.run(lambda: steps.ensemble_finetune(__doc__, "tinyimagenet", checkpoint_paths),
              resumes=True)
