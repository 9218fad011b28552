"""Labels of known advantages, and the numbers that say what they are worth."""

import math

import pytest
import torch

from dsrl.errors import DsrlError
from dsrl.labels import RULES, LabelReport, Quantile, Soft, Threshold, auc, flip_rate, label

ADVANTAGES = torch.tensor([-2.0, -0.5, 0.0, 0.1, 3.0])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Threshold(), [0, 0, 1, 1, 1]),
        (Threshold(0.1), [0, 0, 0, 1, 1]),
        (Quantile(0.4), [0, 0, 0, 1, 1]),
        (Quantile(0.2), [0, 0, 0, 0, 1]),
        (Quantile(0.01), [0, 0, 0, 0, 1]),
        (Soft(0.5), [1 / (1 + math.exp(-2 * a)) for a in ADVANTAGES.tolist()]),
    ],
    ids=str,
)
def test_labels_of_known_advantages(rule, expected):
    assert rule(ADVANTAGES).tolist() == pytest.approx(expected)


def test_ties_at_the_quantile_are_all_good():
    assert Quantile(0.25)(torch.tensor([0.0, 1.0, 1.0, -1.0])).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("rule", "argument", "message"),
    [("quantile", 0.0, "share of good actions is 0.0"), ("quantile", 1.0, "is 1.0"), ("soft", 0.0, "temperature")],
)
def test_rules_that_label_nothing_are_refused(rule, argument, message):
    with pytest.raises(DsrlError, match=message):
        RULES[rule](argument)


def test_auc_by_hand():
    """Of the four pairs of a good and a bad one, three are in the right order."""
    assert auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])) == 0.75
    # a tie counts half: one pair is tied, the other is wrong
    assert auc(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([True, False, False])) == 0.25
    assert math.isnan(auc(torch.ones(3), torch.ones(3).bool()))


def test_auc_is_the_share_of_pairs_in_the_right_order():
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(20, (300,), generator=generator).float()
    good = torch.rand(300, generator=generator) < 0.1 + 0.03 * score
    pairs = score[good][:, None] - score[~good]
    assert auc(score, good) == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).mean()))


def test_the_flip_rate_is_the_share_without_agreement():
    one, two = torch.tensor([[-1.0, 1.0, 2.0, -3.0], [-2.0, -1.0, 1.0, 3.0]])
    assert flip_rate(torch.stack([one, two]), Threshold()) == 0.5
    assert flip_rate(torch.stack([one, one]), Soft()) == 0.0
    assert flip_rate(torch.stack([one, two]), Quantile(0.25)) == 0.5


def test_the_pessimistic_critic_labels():
    advantages = torch.tensor([[1.0, 1.0, -1.0, 2.0], [-1.0, 1.0, -1.0, 1.0]])
    labels, report = label(advantages, Threshold(), torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.tensor([0.0, 5, 0, 5]))
    assert labels.tolist() == [0, 1, 0, 1]
    assert report == LabelReport(positive_rate=0.5, flip_rate=0.25, auc=1.0)
    assert report.metrics() == {"labels/positive_rate": 0.5, "labels/flip_rate": 0.25, "labels/auc": 1.0}
    assert not report.concerns()


@pytest.mark.parametrize(("value", "rate"), [(1.0, "100%"), (-1.0, "0%")])
def test_labels_of_one_class_are_refused_by_name(value, rate):
    same = torch.full((2, 4), value)
    with pytest.raises(DsrlError, match=f"labels/positive_rate is {rate}: all 4 labels are"):
        label(same, Threshold(), torch.arange(4.0), torch.arange(4.0))
    with pytest.raises(DsrlError, match="labels/positive_rate is"):
        label(same, Soft(), torch.arange(4.0), torch.arange(4.0))


def test_a_critic_that_has_diverged_is_named():
    with pytest.raises(DsrlError, match="labels/advantage is not finite"):
        label(torch.tensor([[0.0, float("nan")]]), Threshold(), torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize(
    ("report", "names"),
    [
        (LabelReport(0.03, 0.1, 0.8), ["positive_rate"]),
        (LabelReport(0.95, 0.1, 0.8), ["positive_rate"]),
        (LabelReport(0.3, 0.4, 0.5), ["flip_rate", "auc"]),
    ],
)
def test_useless_labels_are_pointed_out(report, names):
    concerns = report.concerns()
    assert len(concerns) == len(names)
    assert all(concern.startswith(f"labels/{name} is") for concern, name in zip(concerns, names, strict=True))
