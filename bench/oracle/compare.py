"""Holds modelmirror's bets against confseq's (Howard, Ramdas, Waudby-Smith) and expectation's (Ostami).

    cargo test --release -p mirror-rollout --lib -- --ignored --nocapture oracle::dump | python compare.py

No part of the build. requirements.txt says what it needs.
"""

import json
import math
import sys

import numpy as np
from confseq.betting import betting_cs, betting_mart
from confseq.boundaries import normal_log_mixture
from expectation.ksample.bernoulli import BernoulliRIPrCalculator
from expectation.ksample.config import KSampleAlternativeType, KSampleConfig
from expectation.modules.boundaries import normal_log_mixture as normal_log_mixture_of_expectation

INTERVALS = 40


def bet(outcomes, mean, stake):
    """ln of confseq's capital after a bet of one stake on all outcomes."""
    capital = betting_mart(
        np.array(outcomes, dtype=float),
        mean,
        lambdas_fn_positive=lambda x, m: np.repeat(stake, len(x)),
        theta=1,
        trunc_scale=1,
    )
    return math.log(capital[-1])


def one(case):
    limit, believed = case["limit"], case["believed"]
    stake = (believed - limit) / (limit * (1 - limit))
    # No request takes more than 0.99 of a bet.
    worst = stake * limit if stake > 0 else -stake * (1 - limit)
    stake *= min(1.0, 0.99 / worst)
    others = case["trials"] - case["events"]
    return [bet([1] * case["events"] + [0] * others, limit, stake)]


def pairs(case):
    """Differences of -1 to 1, put into 0 to 1."""
    better, worse, equal = case["differences"]
    stake = case["sign"] * case["stake"] / (1 + case["sign"] * case["limit"])
    values = [0.0] * better + [1.0] * worse + [0.5] * equal
    return [bet(values, (1 + case["limit"]) / 2, 2 * stake)]


def two(case):
    # Its simple alternative has these rates, in both arms.
    config = KSampleConfig(
        k=2,
        alternative_type=KSampleAlternativeType.SIMPLE,
        simple_theta=dict(enumerate(case["believed"])),
    )
    successes = dict(enumerate(case["events"]))
    sizes = dict(enumerate(case["trials"]))
    return [BernoulliRIPrCalculator(config).compute_log_e_value(successes, sizes)[0]]


def mixture(case):
    time, total = 1 / case["variance"], case["gap"] / case["variance"]
    level = 2 * math.log(1 / 0.05)
    best = (level + math.log(1 + level)) / case["deviation"] ** 2
    theirs = [normal_log_mixture, normal_log_mixture_of_expectation]
    return [float(of(total, time, best, 0.05, is_one_sided=False)) for of in theirs]


def interval(case):
    """Whether the intervals meet, and whether ours is the wider one."""
    outcomes = []
    for events in case["windows"]:
        outcomes += [1.0] * events + [0.0] * (10 - events)
    low, high = (ends[-1] for ends in betting_cs(np.array(outcomes), alpha=0.05, breaks=200))
    ours = [
        0.0 if case["low"] is None else case["low"],
        1.0 if case["high"] is None else case["high"],
    ]
    meets = ours[0] <= high and low <= ours[1]
    return meets, ours[0] <= case["rate"] <= ours[1], ours[1] - ours[0] >= high - low


def main():
    lines = (line[line.index("oracle {") + 7 :] for line in sys.stdin if "oracle {" in line)
    cases = [json.loads(line) for line in lines]
    assert cases, "no figures came in"
    for what, theirs in [("one", one), ("two", two), ("pairs", pairs), ("mixture", mixture)]:
        some = [case for case in cases if case["what"] == what]
        furthest = max(abs(case["ln"] - value) for case in some for value in theirs(case))
        print(f"{what}: {len(some)} compared, at most {furthest:.1e} nats apart")
        assert furthest < 1e-6, what
    some = [case for case in cases if case["what"] == "interval"]
    # Theirs take some seconds each.
    found = [interval(case) for case in some[:INTERVALS]]
    meet, hold, wider = (sum(values) for values in zip(*found))
    print(f"intervals: of {len(found)} {meet} meet, ours has the rate in {hold}, and is wider in {wider}")
    assert meet == len(found) and hold >= 0.95 * len(found)


main()
