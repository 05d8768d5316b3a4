"""Step 3: retrain a pruned network with a one-cycle learning rate (--no-onecycle: the usual way).

    python tinyimagenet/weight_pruning/finetune.py --refine runs/mine/onecycle-1
"""

from kesi.cli import entry, steps

if __name__ == "__main__":
    entry.run(lambda: steps.finetune(__doc__, "tinyimagenet"), resumes=True)
