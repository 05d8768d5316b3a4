"""Data sets as uint8 tensors, and batches of them, augmented on the device."""

from kesi.data.batches import TrainBatches, eval_batches
from kesi.data.datasets import DATASETS, INFO, Dataset, DatasetInfo, load
from kesi.data.split import Split

__all__ = ["DATASETS", "INFO", "Dataset", "DatasetInfo", "Split", "TrainBatches", "eval_batches", "load"]
