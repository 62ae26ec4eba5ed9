"""Error rates and mean sizes of the sequential paired test, in simulated comparisons.

    python benchmarks/sequential_test.py [--comparisons 100000] [--limit 600]

For several shares of discordant pairs and true differences it prints how often each verdict is reached within ``limit``
pairs, the mean number of pairs, and beside it the number that an exact test of fixed size needs for a difference of 15
points, with 80 % power.
"""

import argparse

import numpy as np

from wmjax.analysis.sequential import StoppingRule, log_capital, sizes


def simulate(
    share: float, difference: float, comparisons: int, limit: int, rule: StoppingRule, seed: int = 0
) -> dict[str, float]:
    """Shares of the verdicts, and the mean number of pairs, over simulated comparisons.

    Args:
        share: of pairs that are discordant.
        difference: true success rate of B minus A, at most ``share``.
        comparisons: simulated.
        limit: pairs after which a comparison stays undecided.
        rule: when to stop.
        seed: of the simulation.

    """
    random = np.random.default_rng(seed)
    better = (share + difference) / 2
    claims, futile, total = 0, 0, 0
    for _ in range(comparisons):
        draw = random.random(limit)
        pairs = np.where(draw < better, 1, np.where(draw < share, -1, 0))
        forward, backward = log_capital(pairs, rule.effect), log_capital(-pairs, rule.effect)
        claim = np.logaddexp(forward, backward) - np.log(2) >= -np.log(rule.alpha)
        small = np.maximum(forward, backward) <= np.log(rule.beta)
        stop = int(np.argmax(claim | small)) if (claim | small).any() else limit - 1
        total += stop + 1
        claims += bool(claim[stop])
        futile += bool(small[stop]) and not claim[stop]
    return {"claimed": claims / comparisons, "smaller": futile / comparisons, "pairs": total / comparisons}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=100_000)
    parser.add_argument("--limit", type=int, default=600)
    options = parser.parse_args()
    rule = StoppingRule()
    print("discordant  difference  claimed  smaller  mean pairs  fixed size for 15 points  Wald's mean")
    for share in (0.2, 0.3, 0.4, 0.5):
        for difference in (0.0, 0.05, 0.15, 0.25):
            if difference <= share:
                found = simulate(share, difference, options.comparisons, options.limit, rule)
                fixed, wald = sizes(rule, share)
                print(
                    f"{share:10.2f} {difference:11.2f} {found['claimed']:8.4f} {found['smaller']:8.4f} "
                    f"{found['pairs']:11.1f} {fixed:25d} {wald:12.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
