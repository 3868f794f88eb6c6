//! The leaderboard: wins against each opponent, and strengths.

use std::collections::BTreeSet;

use serde::Serialize;
use utoipa::ToSchema;

use super::rating::{Outcome, Rating, rate};

/// A row of the leaderboard.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Standing {
    /// The contestant.
    pub name: String,
    /// Bradley–Terry strength in points, with a mean of 1000.
    pub strength: f64,
    /// The lower end of its 95 % interval.
    pub low: f64,
    /// The upper end of its 95 % interval.
    pub high: f64,
    /// The number of votes on pairs with one of its images.
    pub votes: u64,
    /// The number of votes that it won.
    pub wins: u64,
    /// The number of votes without a winner.
    pub ties: u64,
    /// Its results against each opponent.
    pub opponents: Vec<Opponent>,
}

/// The results of a contestant against one opponent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Opponent {
    /// The opponent.
    pub name: String,
    /// The number of votes that the contestant won.
    pub wins: u64,
    /// The number of votes that the opponent won.
    pub losses: u64,
    /// The number of votes without a winner.
    pub ties: u64,
}

/// All contestants, the strongest first. A vote is the left contestant, the right one, and the left one's score: 1, ½ or 0.
pub fn standings(votes: &[(String, String, f64)]) -> Vec<Standing> {
    let names: BTreeSet<&str> = votes.iter().flat_map(|(left, right, _)| [left.as_str(), right]).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let place = |name: &str| names.binary_search(&name).expect("the names are those of the votes");
    let outcome =
        |(left, right, score): &(String, String, f64)| Outcome { pair: [place(left), place(right)], score: *score };
    let outcomes: Vec<Outcome> = votes.iter().map(outcome).collect();
    let ratings = rate(names.len(), &outcomes);
    let mut board: Vec<Standing> =
        ratings.iter().enumerate().map(|(own, rating)| standing(&names, own, *rating, &outcomes)).collect();
    board.sort_by(|a, b| b.strength.total_cmp(&a.strength));
    board
}

fn standing(names: &[&str], own: usize, rating: Rating, outcomes: &[Outcome]) -> Standing {
    let mut against = vec![[0; 3]; names.len()];
    for &Outcome { pair: [one, other], score } in outcomes.iter().filter(|outcome| outcome.pair.contains(&own)) {
        let (opponent, score) = if one == own { (other, score) } else { (one, 1.0 - score) };
        against[opponent][(2.0 * score) as usize] += 1;
    }
    let met = names.iter().zip(&against).filter(|(_, counts)| **counts != [0; 3]);
    let opponents: Vec<Opponent> =
        met.map(|(name, &[losses, ties, wins])| Opponent { name: name.to_string(), wins, losses, ties }).collect();
    let sum = |of: fn(&Opponent) -> u64| opponents.iter().map(of).sum::<u64>();
    let (wins, ties, losses) = (sum(|o| o.wins), sum(|o| o.ties), sum(|o| o.losses));
    Standing {
        name: names[own].into(),
        strength: rating.strength,
        low: rating.low,
        high: rating.high,
        votes: wins + ties + losses,
        wins,
        ties,
        opponents,
    }
}

/// The leaderboard as CSV, one row per contestant.
pub fn csv(board: &[Standing]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let number = |value: f64| format!("{value:.1}");
    let header = ["name", "strength", "low", "high", "votes", "wins", "ties"].map(String::from);
    let rows = board.iter().map(|row| {
        let counts = [row.votes, row.wins, row.ties].map(|count| count.to_string());
        let [votes, wins, ties] = counts;
        [row.name.clone(), number(row.strength), number(row.low), number(row.high), votes, wins, ties]
    });
    for row in std::iter::once(header).chain(rows) {
        writer.write_record(row).expect("writing to memory does not fail");
    }
    let bytes = writer.into_inner().expect("writing to memory does not fail");
    String::from_utf8(bytes).expect("text stays text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_counts_wins_ties_and_losses_from_either_side() {
        let votes = [("a", "b", 1.0), ("b", "a", 0.0), ("b", "a", 0.5), ("c, \"d\"", "a", 1.0)];
        let votes = votes.map(|(left, right, score)| (left.to_string(), right.to_string(), score));
        let board = standings(&votes);
        let a = board.iter().find(|row| row.name == "a").unwrap();
        assert_eq!((a.votes, a.wins, a.ties), (4, 2, 1));
        let against = |name: &str, wins, losses, ties| Opponent { name: name.into(), wins, losses, ties };
        assert_eq!(a.opponents, [against("b", 2, 0, 1), against("c, \"d\"", 0, 1, 0)]);
        assert_eq!(board[0].name, "c, \"d\"");
        let text = csv(&board);
        assert!(text.starts_with("name,strength,low,high,votes,wins,ties\n\"c, \"\"d\"\"\","), "{text}");
        assert_eq!(text.lines().count(), 4);
    }
}
