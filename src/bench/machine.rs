//! The machine and the time of a measurement.

use std::{process::Command, time::SystemTime};

use burn::tensor::Device;
use serde::Serialize;

use crate::device::Hardware;

/// The header of a table of results.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The date in UTC, such as `2026-11-21`.
    pub date: String,
    /// The device.
    pub device: String,
    /// The version of NVIDIA's driver; none on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The version of kiln, its features, and the commit of its checkout, if there is one.
    pub kiln: String,
    /// The command line.
    pub command: String,
}

impl Machine {
    /// This machine, now.
    pub fn here(device: &Device) -> Self {
        let Hardware { name, driver } = Hardware::of(device);
        let commit = said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]);
        let version = env!("CARGO_PKG_VERSION");
        let features = if cfg!(feature = "cuda") { ", cuda" } else { "" };
        let mut command: Vec<String> = std::env::args().collect();
        command[0] = "kiln".into();
        Self {
            date: date(),
            device: name,
            driver,
            kiln: format!("{version}{}{features}", commit.map_or(String::new(), |commit| format!(" at {commit}"))),
            command: command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
        }
    }
}

/// Quotes an argument for a shell.
fn quoted(word: &str) -> String {
    match word.contains(|letter: char| letter.is_whitespace() || "'\"$`\\*?#&;|<>()".contains(letter)) {
        true => format!("'{}'", word.replace('\'', "'\\''")),
        false => word.into(),
    }
}

/// The first line that a program prints; `None` if it is missing or fails.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().to_string()).filter(|line| !line.is_empty())
}

/// Today's date in UTC.
fn date() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil((since.as_secs() / 86_400) as i64);
    format!("{year}-{month:02}-{day:02}")
}

/// Year, month and day of a number of days after 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_year - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!([0, 58, 59, 365].map(civil), [(1970, 1, 1), (1970, 2, 28), (1970, 3, 1), (1971, 1, 1)]);
        assert_eq!([11_016, 11_017, 20_778].map(civil), [(2000, 2, 29), (2000, 3, 1), (2026, 11, 21)]);
    }

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("--size"), "--size");
        assert_eq!(quoted("python3 it's"), r"'python3 it'\''s'");
    }
}
