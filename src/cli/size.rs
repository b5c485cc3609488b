//! Sizes as people write and read them.

use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a size like `64K`, `1M`, `8GiB` or `512`; units are powers of
/// 1024.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no size like 64K, 1M or 512"))?;
    let unit = unit.to_ascii_uppercase();
    let power = match unit.strip_suffix("IB").unwrap_or(&unit) {
        "" | "B" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(format!("{text:?}: the units are K, M, G and T")),
    };
    number
        .checked_mul(1 << (10 * power))
        .ok_or_else(|| format!("{text:?} is too large"))
}

/// The bytes of a chunk: a power of two from 16 KiB to 1 MiB.
pub(super) fn parse_chunk(text: &str) -> Result<u32, String> {
    let size = parse(text)?;
    u32::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && (16 << 10..=1 << 20).contains(size))
        .ok_or_else(|| "a chunk has 16K, 32K, 64K, 128K, 256K, 512K or 1M".to_owned())
}

/// Whether [`human`] gives bytes, as `--bytes` wants.
static EXACT: AtomicBool = AtomicBool::new(false);

/// From now on sizes are given in bytes.
pub(super) fn show_exact() {
    EXACT.store(true, Ordering::Relaxed);
}

/// `8.0 GiB`; bytes below 1 KiB exactly, and all with `--bytes`.
pub(super) fn human(bytes: u64) -> String {
    match EXACT.load(Ordering::Relaxed) {
        true => bytes.to_string(),
        false => rounded(bytes),
    }
}

fn rounded(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        // What would be rounded to 1024.0 is 1.0 of the next one.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    match unit {
        "B" => format!("{bytes} B"),
        unit => format!("{value:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("64K", 65536),
            ("64k", 65536),
            ("1MiB", 1 << 20),
            ("8G", 8 << 30),
            ("64T", 64 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "K",
            "-1",
            "1.5G",
            "1X",
            "1KB",
            "64 K",
            "99999999999T",
            "iB",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn chunks_are_powers_of_two_from_16_kib_to_1_mib() {
        for (text, bytes) in [("16K", 16 << 10), ("64K", 64 << 10), ("1M", 1 << 20)] {
            assert_eq!(parse_chunk(text), Ok(bytes));
        }
        for bad in ["8K", "48K", "2M", "65537", "0", "4G", "x"] {
            assert!(parse_chunk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_with_one_decimal() {
        assert_eq!(rounded(0), "0 B");
        assert_eq!(rounded(1023), "1023 B");
        assert_eq!(rounded(1024), "1.0 KiB");
        assert_eq!(rounded((1 << 20) - 1), "1.0 MiB");
        assert_eq!(rounded(8 << 30), "8.0 GiB");
        assert_eq!(rounded(u64::MAX), "16384.0 PiB");
    }
}
