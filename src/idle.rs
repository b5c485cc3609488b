//! Whether the machine has nothing better to do.

use std::fs;

/// Hundredths of the last ten seconds in which something waited, from which
/// on the machine counts as busy.
const WAITED_PERCENT: f64 = 5.0;

/// What others may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Processors.
    Cpu,
    /// Disks.
    Io,
}

/// Whether next to nothing has waited for it in the last ten seconds, by the
/// kernel's pressure stall information; on a kernel without that, whether
/// less than half of the processors were in use in the last minute. False if
/// neither can be told.
pub fn is_idle(resource: Resource) -> bool {
    let file = match resource {
        Resource::Cpu => "/proc/pressure/cpu",
        Resource::Io => "/proc/pressure/io",
    };
    match fs::read_to_string(file) {
        Ok(text) => waited_percent(&text).is_some_and(|waited| waited < WAITED_PERCENT),
        Err(_) => fs::read_to_string("/proc/loadavg").is_ok_and(|text| {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            load(&text).is_some_and(|load| load * 2.0 < processors as f64)
        }),
    }
}

/// `avg10` of the line `some` (Documentation/accounting/psi.rst of Linux).
fn waited_percent(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some.split(' ').find_map(|word| word.strip_prefix("avg10="));
    average?.parse().ok()
}

/// The load of the last minute.
fn load(text: &str) -> Option<f64> {
    text.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_numbers_are_understood() {
        let text = "some avg10=1.53 avg60=0.40 avg300=0.10 total=71234\n\
                    full avg10=9.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(waited_percent(text), Some(1.53));
        assert_eq!(waited_percent("full avg10=1.00 total=0\n"), None);
        assert_eq!(load("0.75 0.30 0.10 1/234 5678\n"), Some(0.75));
        assert_eq!(load(""), None);
    }
}
