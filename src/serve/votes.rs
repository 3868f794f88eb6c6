//! Blind votes between images: pairs that differ only in the contestant (base model or adapters), shown without names.
//!
//! One SQLite file holds each pair with its sides, written before it is shown, and each vote with its pair and time, in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::standing::{Standing, standings};
use crate::error::{Error, Result};

/// An image that may be shown in a pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// What made it: the base model, or adapters with their scales.
    pub contestant: String,
    /// Its prompt.
    pub prompt: String,
    /// Everything that must be equal for a fair comparison, as one text: prompt, seed, size, steps, guidance.
    pub scene: String,
    /// Its location, opaque to this module.
    pub image: String,
}

/// A pair as it is shown, without the contestants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Its random ID.
    pub pair: String,
    /// The prompt of both images.
    pub prompt: String,
}

/// A voter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// The owner of the images, who alone sees the votes on them.
    pub owner: String,
    /// The person, if several share one key.
    pub id: String,
}

/// A side of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Shown on the left.
    Left,
    /// Shown on the right.
    Right,
}

/// A person's choice between the images of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The left image is better.
    Left,
    /// The right image is better.
    Right,
    /// Both are good, and neither is better.
    Tie,
    /// Neither is any good. Counts as a tie.
    BothBad,
}

/// The contestants of a pair, revealed after the vote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Revealed {
    /// What made the left image.
    pub left: Maker,
    /// What made the right image.
    pub right: Maker,
}

/// What made an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Maker {
    /// The name of the contestant.
    pub name: String,
}

/// Why a vote was not counted.
#[derive(Debug)]
pub enum NoVote {
    /// There is no such pair.
    Unknown,
    /// There is already a different vote on this pair.
    Already,
    /// The database cannot be written.
    Failed(Error),
}

/// The votes, in a file.
#[derive(Debug)]
pub struct Votes {
    path: PathBuf,
    file: Mutex<Connection>,
}

const TABLES: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS pairs (
        id TEXT PRIMARY KEY, prompt TEXT NOT NULL, scene TEXT NOT NULL, owner TEXT NOT NULL, drawn INTEGER NOT NULL,
        left_name TEXT NOT NULL, left_image TEXT NOT NULL, right_name TEXT NOT NULL, right_image TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS votes (
        pair TEXT PRIMARY KEY REFERENCES pairs (id), choice TEXT NOT NULL, voter TEXT NOT NULL, cast INTEGER NOT NULL
    ) STRICT;
";

impl Votes {
    /// Opens the database of votes, or creates it.
    ///
    /// # Errors
    /// It cannot be written, or is not such a database.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = Connection::open(path).and_then(|file| file.execute_batch(TABLES).map(|()| file));
        let file = opened.map_err(|e| Error::file(path, format!("cannot be used for votes: {e}")))?;
        Ok(Self { path: path.into(), file: Mutex::new(file) })
    }

    /// Draws a pair for `voter`, of `prompt` if given: two images of one scene by different contestants. Contestants that were shown
    /// together least often come first, then scenes that this voter has not seen; each contestant appears on either side equally
    /// often. `None` if no two candidates can be compared.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn draw(&self, candidates: &[Candidate], prompt: Option<&str>, voter: &Voter) -> Result<Option<Pair>> {
        let mut scenes: BTreeMap<&str, BTreeMap<&str, &Candidate>> = BTreeMap::new();
        for candidate in candidates.iter().filter(|candidate| prompt.is_none_or(|prompt| candidate.prompt == prompt)) {
            scenes.entry(&candidate.scene).or_default().entry(&candidate.contestant).or_insert(candidate);
        }
        self.with(|file| {
            let shown = shown(file, &voter.owner)?;
            let seen = seen(file, voter)?;
            let together = |a: &str, b: &str| shown.get(&(a.into(), b.into())).copied().unwrap_or(0);
            let mut best: Option<((bool, i64), [&Candidate; 2])> = None;
            let mut found = 0;
            for (scene, makers) in &scenes {
                let makers: Vec<_> = makers.values().copied().collect();
                for (i, one) in makers.iter().enumerate() {
                    for other in &makers[..i] {
                        let [a, b] = [&one.contestant, &other.contestant];
                        let again = seen.contains(&(scene.to_string(), a.clone(), b.clone()));
                        let rank = (again, together(a, b) + together(b, a));
                        found = if best.as_ref().is_none_or(|(least, _)| rank < *least) { 0 } else { found };
                        if best.as_ref().is_none_or(|(least, _)| rank <= *least) {
                            // Chooses uniformly among equally ranked pairs.
                            found += 1;
                            if random().is_multiple_of(found) {
                                best = Some((rank, [one, other]));
                            }
                        }
                    }
                }
            }
            let Some((_, [one, other])) = best else { return Ok(None) };
            let (as_left, as_right) =
                (together(&one.contestant, &other.contestant), together(&other.contestant, &one.contestant));
            let turned = if as_left == as_right { random().is_multiple_of(2) } else { as_left > as_right };
            let [left, right] = if turned { [other, one] } else { [one, other] };
            let pair = Pair { pair: Uuid::now_v7().to_string(), prompt: one.prompt.clone() };
            file.execute(
                "INSERT INTO pairs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    pair.pair,
                    pair.prompt,
                    one.scene,
                    voter.owner,
                    now(),
                    left.contestant,
                    left.image,
                    right.contestant,
                    right.image
                ],
            )?;
            Ok(Some(pair))
        })
    }

    /// The image on a side of a pair of `owner`; `None` if there is no such pair.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn image(&self, pair: &str, side: Side, owner: &str) -> Result<Option<String>> {
        let column = match side {
            Side::Left => "left_image",
            Side::Right => "right_image",
        };
        let query = format!("SELECT {column} FROM pairs WHERE id = ?1 AND owner = ?2");
        self.with(|file| file.query_row(&query, [pair, owner], |row| row.get(0)).optional())
    }

    /// Counts a vote. Repeating the same vote changes nothing.
    ///
    /// # Errors
    /// See [`NoVote`].
    pub fn vote(&self, pair: &str, choice: Choice, voter: &Voter) -> std::result::Result<Revealed, NoVote> {
        let counted = self.with(|file| {
            let query = "SELECT left_name, right_name FROM pairs WHERE id = ?1 AND owner = ?2";
            let names: Option<(String, String)> =
                file.query_row(query, [pair, &voter.owner], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            let Some((left, right)) = names else { return Ok(Err(NoVote::Unknown)) };
            let word = word(choice);
            file.execute("INSERT OR IGNORE INTO votes VALUES (?1, ?2, ?3, ?4)", params![pair, word, voter.id, now()])?;
            let counted: String =
                file.query_row("SELECT choice FROM votes WHERE pair = ?1", [pair], |row| row.get(0))?;
            let revealed = Revealed { left: Maker { name: left }, right: Maker { name: right } };
            Ok(if counted == word { Ok(revealed) } else { Err(NoVote::Already) })
        });
        counted.map_err(NoVote::Failed)?
    }

    /// All contestants in votes of `owner`, the strongest first; only votes on one prompt, if given.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn leaderboard(&self, owner: &str, prompt: Option<&str>) -> Result<Vec<Standing>> {
        let votes = self.with(|file| votes(file, owner, prompt))?;
        Ok(standings(&votes))
    }

    /// The prompts in votes of `owner`, each with its number of votes.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn prompts(&self, owner: &str) -> Result<Vec<(String, u64)>> {
        let query = "SELECT prompt, count(*) AS n FROM votes JOIN pairs ON id = pair WHERE owner = ?1 GROUP BY prompt ORDER BY n DESC, prompt";
        self.with(|file| {
            file.prepare(query)?.query_map([owner], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?.collect()
        })
    }

    fn with<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        // A panic between two statements leaves the database as after the last complete one.
        let file: MutexGuard<_> = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        work(&file).map_err(|e| Error::file(&self.path, e.to_string()))
    }
}

/// How often the first contestant was shown to the left of the second.
fn shown(file: &Connection, owner: &str) -> rusqlite::Result<BTreeMap<(String, String), i64>> {
    let mut query = file
        .prepare("SELECT left_name, right_name, count(*) FROM pairs WHERE owner = ?1 GROUP BY left_name, right_name")?;
    query.query_map([owner], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?.collect()
}

/// The scenes in which a voter has voted between two contestants, in either order.
fn seen(file: &Connection, voter: &Voter) -> rusqlite::Result<BTreeSet<(String, String, String)>> {
    let mut query = file.prepare(
        "SELECT scene, left_name, right_name FROM pairs JOIN votes ON pair = id WHERE owner = ?1 AND voter = ?2
         UNION SELECT scene, right_name, left_name FROM pairs JOIN votes ON pair = id WHERE owner = ?1 AND voter = ?2",
    )?;
    query.query_map([&voter.owner, &voter.id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

/// Every vote: the left contestant, the right one, and the left one's score.
fn votes(file: &Connection, owner: &str, prompt: Option<&str>) -> rusqlite::Result<Vec<(String, String, f64)>> {
    let mut query = file.prepare(
        "SELECT left_name, right_name, CASE choice WHEN 'left' THEN 1.0 WHEN 'right' THEN 0.0 ELSE 0.5 END
         FROM votes JOIN pairs ON id = pair WHERE owner = ?1 AND (?2 IS NULL OR prompt = ?2) ORDER BY votes.rowid",
    )?;
    query.query_map(params![owner, prompt], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

fn word(choice: Choice) -> &'static str {
    match choice {
        Choice::Left => "left",
        Choice::Right => "right",
        Choice::Tie => "tie",
        Choice::BothBad => "both_bad",
    }
}

/// Milliseconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// A random number from the operating system, so that nobody can predict the sides.
fn random() -> u64 {
    let bytes = *Uuid::now_v7().as_bytes();
    u64::from_le_bytes(blake3::hash(&bytes).as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::standing::Opponent;

    fn candidate(contestant: &str, prompt: &str, seed: u64) -> Candidate {
        let scene = format!("{prompt}/{seed}");
        Candidate {
            contestant: contestant.into(),
            prompt: prompt.into(),
            image: format!("{contestant}/{scene}"),
            scene,
        }
    }

    fn me() -> Voter {
        Voter { owner: "me".into(), id: "my browser".into() }
    }

    fn open() -> (tempfile::TempDir, Votes) {
        let folder = tempfile::tempdir().unwrap();
        let votes = Votes::open(&folder.path().join("votes.sqlite")).unwrap();
        (folder, votes)
    }

    #[test]
    fn pairs_are_of_one_scene_and_stand_on_both_sides() {
        let (_folder, votes) = open();
        let candidates: Vec<_> =
            ["base", "ink", "clay"].iter().flat_map(|name| [0, 1].map(|seed| candidate(name, "a cat", seed))).collect();
        let mut left = BTreeMap::<(String, String), i64>::new();
        for _ in 0..120 {
            let pair = votes.draw(&candidates, None, &me()).unwrap().unwrap();
            let [one, other] =
                [Side::Left, Side::Right].map(|side| votes.image(&pair.pair, side, "me").unwrap().unwrap());
            let (one, other) = (one.split_once('/').unwrap(), other.split_once('/').unwrap());
            assert_eq!(one.1, other.1, "one scene");
            assert_ne!(one.0, other.0);
            let (first, sign) = if one.0 < other.0 { ((one.0, other.0), 1) } else { ((other.0, one.0), -1) };
            *left.entry((first.0.into(), first.1.into())).or_default() += sign;
        }
        assert_eq!(left.len(), 3, "all pairs of contestants are drawn");
        assert!(left.values().all(|more| more.abs() <= 1), "{left:?}");
    }

    #[test]
    fn what_cannot_be_compared_is_not_drawn() {
        let (_folder, votes) = open();
        let lone = [candidate("base", "a cat", 0), candidate("ink", "a cat", 1), candidate("base", "a cat", 0)];
        assert_eq!(votes.draw(&lone, None, &me()).unwrap(), None);
        let both = [candidate("base", "a cat", 0), candidate("ink", "a cat", 0)];
        assert_eq!(votes.draw(&both, Some("a dog"), &me()).unwrap(), None);
        assert!(votes.draw(&both, Some("a cat"), &me()).unwrap().is_some());
    }

    #[test]
    fn a_scene_that_a_voter_has_judged_comes_after_the_others() {
        let (_folder, votes) = open();
        let candidates: Vec<_> =
            ["base", "ink"].iter().flat_map(|name| [0, 1, 2].map(|seed| candidate(name, "a cat", seed))).collect();
        let mut scenes = BTreeSet::new();
        for _ in 0..3 {
            let pair = votes.draw(&candidates, None, &me()).unwrap().unwrap();
            scenes.insert(
                votes.image(&pair.pair, Side::Left, "me").unwrap().unwrap().split_once('/').unwrap().1.to_string(),
            );
            votes.vote(&pair.pair, Choice::Tie, &me()).unwrap();
        }
        assert_eq!(scenes.len(), 3);
        assert!(votes.draw(&candidates, None, &me()).unwrap().is_some(), "and then again");
    }

    #[test]
    fn a_vote_counts_once_and_outlives_the_program() {
        let (folder, votes) = open();
        let candidates = [candidate("base", "a cat", 0), candidate("ink", "a cat", 0)];
        for _ in 0..10 {
            let pair = votes.draw(&candidates, None, &me()).unwrap().unwrap().pair;
            let left = votes.image(&pair, Side::Left, "me").unwrap().unwrap();
            let choice = if left.starts_with("ink") { Choice::Left } else { Choice::Right };
            let revealed = votes.vote(&pair, choice, &me()).unwrap();
            assert!(left.starts_with(&revealed.left.name));
            assert_eq!(votes.vote(&pair, choice, &me()).unwrap(), revealed);
            assert!(matches!(votes.vote(&pair, Choice::Tie, &me()), Err(NoVote::Already)));
        }
        let tie = votes.draw(&candidates, None, &me()).unwrap().unwrap().pair;
        votes.vote(&tie, Choice::BothBad, &me()).unwrap();
        assert!(matches!(votes.vote("no such pair", Choice::Left, &me()), Err(NoVote::Unknown)));
        drop(votes);
        let votes = Votes::open(&folder.path().join("votes.sqlite")).unwrap();
        let board = votes.leaderboard("me", None).unwrap();
        assert_eq!(board.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["ink", "base"]);
        assert_eq!((board[0].votes, board[0].wins, board[0].ties), (11, 10, 1));
        assert_eq!(board[1].opponents, [Opponent { name: "ink".into(), wins: 0, losses: 10, ties: 1 }]);
        assert!(board[0].low > board[1].high, "{board:?}");
        assert_eq!(votes.leaderboard("me", Some("a dog")).unwrap(), []);
        assert_eq!(votes.prompts("me").unwrap(), [("a cat".to_string(), 11)]);
        assert_eq!((votes.prompts("you").unwrap(), votes.leaderboard("you", None).unwrap()), (vec![], vec![]));
        assert_eq!(votes.image(&tie, Side::Left, "you").unwrap(), None);
    }
}
