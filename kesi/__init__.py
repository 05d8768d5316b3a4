"""KESI: compress convolutional networks by iterative pruning and distillation of the snapshots."""
