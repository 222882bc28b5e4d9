//! Names of signals, as `STOPSIGNAL` takes them.

/// signal(7), without `SIG`; those in real time are numbered from their ends.
const NAMES: [&str; 35] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN",
];

/// Whether `word` is the name of a signal, with or without `SIG`, or its number.
pub(super) fn is_one(word: &str) -> bool {
    if word.bytes().all(|byte| byte.is_ascii_digit()) {
        return word.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    }
    let name = word.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let from = |prefix: &str, last: u8| {
        name.strip_prefix(prefix).and_then(|number| number.parse::<u8>().ok()).is_some_and(|number| number <= last)
    };
    NAMES.contains(&name) || name == "RTMAX" || from("RTMIN+", 15) || from("RTMAX-", 14)
}
