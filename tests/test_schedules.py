"""Learning rates step by step against their formulas."""

import math
from dataclasses import replace

import pytest

from kesi.method.recipes import CIFAR_BASELINE, WRN_BASELINE
from kesi.method.schedules import MORE_RETRAININGS, Training, learning_rates, rewound
from kesi.system.errors import UsageError


def test_linear_and_cosine_are_their_formulas():
    training = Training(epochs=4, batch_size=8, lr=0.3, schedule="linear")
    assert learning_rates(training, 5) == pytest.approx([0.3 * (1 - s / 20) for s in range(20)])
    found = learning_rates(replace(training, schedule="cosine"), 5)
    assert found == pytest.approx([0.15 * (1 + math.cos(math.pi * s / 20)) for s in range(20)])


def test_the_authors_steps_fall_after_epochs_20_and_30():
    found = learning_rates(MORE_RETRAININGS["steps"], 3)
    assert found == pytest.approx([0.1] * 60 + [0.01] * 30 + [0.001] * 30)


@pytest.mark.parametrize("baseline", [
    CIFAR_BASELINE, WRN_BASELINE, Training(60, 8, 0.2, "linear"), Training(60, 8, 0.2, "constant")])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.51, 1.0])
def test_rewound_is_the_end_of_the_baseline(baseline, share):
    epochs = max(1, round(baseline.epochs * share))
    found = learning_rates(rewound(baseline, epochs), 2)
    assert found == pytest.approx(learning_rates(baseline, 2)[-2 * epochs:])


def test_what_cannot_be_rewound_is_said():
    with pytest.raises(UsageError, match="300 epochs"):
        rewound(CIFAR_BASELINE, 301)
    with pytest.raises(UsageError, match="onecycle"):
        rewound(Training(60, 8, 0.2, "onecycle"), 10)
