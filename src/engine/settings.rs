//! Options by name: how a C program, an environment variable or a file sets a field of a Rust options struct.
//!
//! A room keeps its options as a plain struct with defaults; here stands the table that gives each field a name, a
//! sentence and a parser. `docs/options.md` is written from the same tables, and a test fails when it is stale.

use std::time::Duration;

use crate::ffi::{Code, Error};

/// One option of `T`.
pub struct Setting<T> {
    pub name: &'static str,
    /// One sentence: what it does, in which unit.
    pub help: &'static str,
    /// Puts the text into the field, or says why it cannot be used.
    pub set: fn(&mut T, &str) -> Result<(), String>,
    /// The field's value as text, for the documentation.
    pub show: fn(&T) -> String,
}

/// Sets option `name` of `options` to `value`, or fails with a sentence that names both and the way out.
pub fn apply<T>(table: &[Setting<T>], options: &mut T, name: &str, value: &str) -> Result<(), Error> {
    match table.iter().find(|s| s.name == name) {
        Some(setting) => (setting.set)(options, value.trim()).map_err(|why| {
            Error::new(Code::Config, format!("option {name}: \"{}\" cannot be used: {why}", value.escape_default()))
        }),
        None => {
            let names: Vec<&str> = table.iter().map(|s| s.name).collect();
            Err(Error::new(
                Code::Config,
                format!("there is no option \"{}\"; the options are {}", name.escape_default(), names.join(", ")),
            ))
        }
    }
}

/// A whole number within bounds.
pub fn number<N>(text: &str, least: N, most: N) -> Result<N, String>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse::<N>() {
        Ok(n) if n >= least && n <= most => Ok(n),
        _ => Err(format!("give a whole number from {least} to {most}")),
    }
}

/// `on` or `off`.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "yes" | "true" | "1" => Ok(true),
        "off" | "no" | "false" | "0" => Ok(false),
        _ => Err("give on or off".into()),
    }
}

/// A time with its unit: `200us`, `250ms`, `5s`, `2m`.
pub fn time(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[digits..] {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        _ => 0,
    };
    let micros = text[..digits].parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    match micros.map(Duration::from_micros) {
        Some(t) if unit != 0 && t >= least && t <= most => Ok(t),
        _ => Err(format!("give a time with its unit (250ms, 5s, 2m) from {} to {}", show_time(least), show_time(most))),
    }
}

pub fn show_time(time: Duration) -> String {
    match time.as_millis() {
        m if m >= 60_000 && m % 60_000 == 0 => format!("{}m", m / 60_000),
        m if m >= 1_000 && m % 1_000 == 0 => format!("{}s", m / 1_000),
        _ if time.as_micros() % 1_000 != 0 => format!("{}us", time.as_micros()),
        m => format!("{m}ms"),
    }
}

pub fn show_switch(on: bool) -> String {
    if on { "on".into() } else { "off".into() }
}

/// The table as Markdown rows: name, default, sentence.
pub fn document<T: Default>(table: &[Setting<T>]) -> String {
    let defaults = T::default();
    let mut out = String::from("| option | default | what it does |\n|---|---|---|\n");
    for s in table {
        out.push_str(&format!("| `{}` | `{}` | {} |\n", s.name, (s.show)(&defaults), s.help));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_need_a_unit_and_stay_in_bounds() {
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(3600));
        assert_eq!(time("250ms", least, most), Ok(Duration::from_millis(250)));
        assert_eq!(time("2m", least, most), Ok(Duration::from_secs(120)));
        assert_eq!(time("10500us", least, most), Ok(Duration::from_micros(10_500)));
        for bad in ["", "5", "us", "s", "5 s", "-5s", "1ms", "2h", "99999999999999999999s", "18446744073709551615m"] {
            assert!(time(bad, least, most).is_err(), "{bad}");
        }
        assert_eq!(show_time(Duration::from_secs(120)), "2m");
        assert_eq!(show_time(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_time(Duration::from_micros(200)), "200us");
    }
}
