"""Run by torchrun in test_distributed.py: one step and one short training,
whose outcome rank 0 leaves in a file."""

import sys
from dataclasses import asdict, replace

import torch

import models
from kesi.data import TrainBatches, load
from kesi.method.recipes import ONE_CYCLE
from kesi.method.training import Options, fit, predict
from kesi.system import distributed
from kesi.system.execution import make_step


def small():
    torch.manual_seed(0)
    return models.create("resnet20", 10, [2] * 9).to(memory_format=torch.channels_last)


def main(out, sync):
    distributed.start("cpu")
    dataset = load("digits")
    # batches of 40 leave a last one of 20; neither divides by 3
    batches = TrainBatches(dataset, 40, 7, "cpu", distributed.rank(), distributed.world())
    # in fp32, rounding alone differs by 1e-3 after 20 norms of two channels
    model = small().double().train()
    step = make_step(model, lambda logits, images, labels: torch.nn.functional.cross_entropy(
        logits, labels), "cpu", "fp32", "off", 1)
    gradients, seen = [], []
    with distributed.synchronised_norms(model, sync):
        for number, (images, labels) in enumerate(batches.epoch(3)):
            seen.append(
                distributed.total(torch.stack([images.double().sum(), labels.sum().double()])))
            step(images.double(), labels, batches.weight(number))
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        norms = torch.cat([b.flatten().float() for n, b in model.named_buffers() if "running" in n])
    trained = small()
    history = fit(trained, dataset, replace(ONE_CYCLE, epochs=3, batch_size=40, lr=0.01), seed=1,
                  options=Options(eval_every=2, sync_bn=sync))
    logits = predict(trained, dataset, dataset.test)
    if distributed.is_main():
        torch.save({"gradients": torch.stack(gradients), "seen": torch.stack(seen), "norms": norms,
                    "logits": logits, "weights": trained.state_dict(),
                    "history": [asdict(row) for row in history]}, out)
    distributed.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "sync")
