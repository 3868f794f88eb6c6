//! Strengths of contestants from pairwise votes: the Bradley–Terry model (Bradley & Terry, 1952), with intervals by bootstrap.
//!
//! Contestant `i` is preferred to `j` with the probability `1 / (1 + exp(θ_j − θ_i))`. A tie counts half a win for each of the two.
//! Unlike Elo's update, the result does not depend on the order of the votes.

use crate::rng::{Purpose, Seed};

/// Points per factor of e in the odds, so that 400 points are a factor of 10, as in chess ratings.
const POINTS: f64 = 400.0 / std::f64::consts::LN_10;

/// The mean of all strengths, in points.
const MIDDLE: f64 = 1000.0;

/// The weight of the prior: a normal distribution of strengths with a standard deviation of 3 (521 points). Without it, a contestant
/// that has won every vote would be infinitely strong.
const PENALTY: f64 = 1.0 / 18.0;

/// The number of bootstrap resamples behind an interval.
const RESAMPLES: usize = 1000;

/// The outcome of one vote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Two different contestants, counted from 0.
    pub pair: [usize; 2],
    /// The score of the first: 1 for a win, ½ for a tie, 0 for a loss.
    pub score: f64,
}

/// The strength of a contestant in points, with the interval that holds 95 % of the resamples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rating {
    /// The most likely strength; the mean of all is 1000.
    pub strength: f64,
    /// The 2.5th percentile.
    pub low: f64,
    /// The 97.5th percentile.
    pub high: f64,
}

/// Rates `contestants` by these votes. The same votes always give the same ratings.
pub fn rate(contestants: usize, outcomes: &[Outcome]) -> Vec<Rating> {
    let best = strengths(&Wins::of(contestants, outcomes.iter()), PENALTY, &vec![0.0; contestants]);
    let mut drawn = vec![Vec::with_capacity(RESAMPLES); contestants];
    for round in 0..if outcomes.is_empty() { 0 } else { RESAMPLES } {
        let draws = Seed(0).named(Purpose::Order, &format!("bootstrap {round}")).uniform(outcomes.len());
        let last = outcomes.len() - 1;
        let resample =
            draws.iter().map(|draw| &outcomes[((f64::from(*draw) * outcomes.len() as f64) as usize).min(last)]);
        let found = strengths(&Wins::of(contestants, resample), PENALTY, &best);
        drawn.iter_mut().zip(found).for_each(|(drawn, strength)| drawn.push(strength));
    }
    let points = |strength: f64| MIDDLE + POINTS * strength;
    best.iter()
        .zip(&mut drawn)
        .map(|(&strength, drawn)| {
            drawn.sort_unstable_by(f64::total_cmp);
            let at = |share: f64| drawn.get((share * drawn.len() as f64) as usize).copied().unwrap_or(strength);
            Rating { strength: points(strength), low: points(at(0.025)), high: points(at(0.975)) }
        })
        .collect()
}

/// The wins of each contestant against each other one.
struct Wins {
    contestants: usize,
    /// Row-major: wins of the row's contestant against the column's.
    table: Vec<f64>,
}

impl Wins {
    fn of<'a>(contestants: usize, outcomes: impl Iterator<Item = &'a Outcome>) -> Self {
        let mut table = vec![0.0; contestants * contestants];
        for Outcome { pair: [one, other], score } in outcomes {
            table[one * contestants + other] += score;
            table[other * contestants + one] += 1.0 - score;
        }
        Self { contestants, table }
    }

    fn against(&self, one: usize, other: usize) -> f64 {
        self.table[one * self.contestants + other]
    }

    /// The pairs with votes.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let pairs = (0..self.contestants).flat_map(|one| (0..one).map(move |other| (one, other)));
        pairs.filter(|&(one, other)| self.against(one, other) + self.against(other, one) > 0.0)
    }

    /// The loss to minimize: `penalty·Σθ² − Σ wins·ln P(win)`.
    fn loss(&self, strengths: &[f64], penalty: f64) -> f64 {
        let against = |one: usize, other: usize| {
            // ln(1 + e^x) without overflow.
            let x = strengths[other] - strengths[one];
            self.against(one, other) * (x.max(0.0) + (-x.abs()).exp().ln_1p())
        };
        let fit: f64 = self.pairs().map(|(one, other)| against(one, other) + against(other, one)).sum();
        fit + penalty * strengths.iter().map(|strength| strength * strength).sum::<f64>()
    }
}

/// The most likely θ, with mean 0, by Newton's method from `start`.
fn strengths(wins: &Wins, penalty: f64, start: &[f64]) -> Vec<f64> {
    let n = wins.contestants;
    let mut strengths = start.to_vec();
    for _ in 0..100 {
        let mut gradient: Vec<f64> = strengths.iter().map(|strength| 2.0 * penalty * strength).collect();
        // A common offset changes no probability; this term fixes the mean.
        let mut curvature = vec![1.0 / n as f64; n * n];
        (0..n).for_each(|i| curvature[i * n + i] += 2.0 * penalty);
        for (one, other) in wins.pairs() {
            let votes = wins.against(one, other) + wins.against(other, one);
            let chance = 1.0 / (1.0 + (strengths[other] - strengths[one]).exp());
            let surprise = wins.against(one, other) - votes * chance;
            gradient[one] -= surprise;
            gradient[other] += surprise;
            let bend = votes * chance * (1.0 - chance);
            for (row, column, sign) in [(one, one, 1.0), (other, other, 1.0), (one, other, -1.0), (other, one, -1.0)] {
                curvature[row * n + column] += sign * bend;
            }
        }
        if gradient.iter().all(|slope| slope.abs() < 1e-10) {
            break;
        }
        let Some(step) = solve(curvature, gradient) else { break };
        let before = wins.loss(&strengths, penalty);
        let moved = |share: f64| -> Vec<f64> { strengths.iter().zip(&step).map(|(at, by)| at - share * by).collect() };
        let shares = std::iter::successors(Some(1.0), |share| Some(share / 2.0)).take(30);
        let Some(better) = shares.map(moved).find(|moved| wins.loss(moved, penalty) <= before) else { break };
        strengths = better;
    }
    strengths
}

/// Solves a symmetric, positive definite system by Cholesky factorization; `None` if it is not definite.
fn solve(mut matrix: Vec<f64>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let n = right.len();
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| matrix[i * n + k] * matrix[j * n + k]).sum();
            let rest = matrix[i * n + j] - sum;
            matrix[i * n + j] = if i != j {
                rest / matrix[j * n + j]
            } else if rest > 0.0 {
                rest.sqrt()
            } else {
                return None;
            };
        }
        let sum: f64 = (0..i).map(|k| matrix[i * n + k] * right[k]).sum();
        right[i] = (right[i] - sum) / matrix[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| matrix[k * n + i] * right[k]).sum();
        right[i] = (right[i] - sum) / matrix[i * n + i];
    }
    Some(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wins of the first, ties and losses for each pair.
    fn votes(table: &[([usize; 2], [usize; 3])]) -> Vec<Outcome> {
        let scores = [1.0, 0.5, 0.0];
        let of = |&(pair, counts): &([usize; 2], [usize; 3])| {
            (0..3).flat_map(move |kind| vec![Outcome { pair, score: scores[kind] }; counts[kind]])
        };
        table.iter().flat_map(of).collect()
    }

    const TABLE: [([usize; 2], [usize; 3]); 5] =
        [([0, 1], [7, 2, 3]), ([0, 2], [9, 0, 1]), ([1, 2], [4, 3, 4]), ([3, 0], [2, 2, 6]), ([2, 3], [5, 1, 2])];

    /// Computed with `choix.opt_pairwise` of choix 0.4.1 for each penalty: every vote given twice, a tie once in each direction, with
    /// `alpha` twice the penalty.
    const REFERENCE: [(f64, [f64; 4]); 3] = [
        (0.0, [0.84116606, -0.06064373, -0.25612027, -0.52440205]),
        (1.0 / 18.0, [0.82886604, -0.06347638, -0.25296235, -0.51242731]),
        (0.5, [0.74522512, -0.07821954, -0.23044882, -0.43655675]),
    ];

    #[test]
    fn strengths_are_those_of_another_program() {
        for (penalty, expected) in REFERENCE {
            let found = strengths(&Wins::of(4, votes(&TABLE).iter()), penalty, &[0.0; 4]);
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{penalty}: {found} against {expected}");
            }
        }
    }

    #[test]
    fn order_and_sides_of_the_votes_do_not_matter() {
        let votes = votes(&TABLE);
        let turned: Vec<_> = votes
            .iter()
            .rev()
            .map(|vote| Outcome { pair: [vote.pair[1], vote.pair[0]], score: 1.0 - vote.score })
            .collect();
        for (one, other) in rate(4, &votes).iter().zip(rate(4, &turned)) {
            assert!((one.strength - other.strength).abs() < 1e-6, "{one:?} {other:?}");
            assert!(one.low < one.strength && one.strength < one.high, "{one:?}");
        }
    }

    #[test]
    fn who_won_everything_is_strong_but_finite_and_votes_narrow_the_interval() {
        let width = |count: usize| {
            let ratings = rate(2, &votes(&[([0, 1], [2 * count, 0, count])]));
            assert!((ratings[0].strength + ratings[1].strength - 2.0 * MIDDLE).abs() < 1e-6);
            ratings[0].high - ratings[0].low
        };
        assert!(width(100) < 0.5 * width(10), "{} {}", width(100), width(10));
        let all = rate(2, &votes(&[([0, 1], [20, 0, 0])]));
        assert!(all[0].strength > all[1].strength + 300.0 && all[0].strength < 2000.0, "{all:?}");
        assert_eq!(rate(1, &[])[0], Rating { strength: MIDDLE, low: MIDDLE, high: MIDDLE });
        assert_eq!(rate(0, &[]), []);
    }

    #[test]
    fn intervals_cover_the_truth_about_as_often_as_they_say() {
        let truth = [0.8, 0.0, -0.8];
        let covered: usize = (0..40)
            .map(|experiment| {
                let mut draw = Seed(experiment).named(Purpose::Order, "votes of the test");
                let chances = draw.uniform(240);
                let vote = |(i, chance): (usize, &f32)| {
                    let pair = [[0, 1], [1, 2], [2, 0]][i % 3];
                    let win = 1.0 / (1.0 + f64::exp(truth[pair[1]] - truth[pair[0]]));
                    Outcome { pair, score: if f64::from(*chance) < win { 1.0 } else { 0.0 } }
                };
                let votes: Vec<_> = chances.iter().enumerate().map(vote).collect();
                let ratings = rate(3, &votes);
                let inside =
                    |(rating, truth): (&Rating, &f64)| (rating.low..rating.high).contains(&(MIDDLE + POINTS * truth));
                ratings.iter().zip(&truth).filter(|&pair| inside(pair)).count()
            })
            .sum();
        assert!((102..=120).contains(&covered), "{covered} of 120 intervals hold the truth: about 114 should");
    }
}
