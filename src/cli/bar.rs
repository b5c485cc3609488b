//! The progress bar, on a terminal only.

use crate::progress::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::time::Duration;

/// A bar on stderr; nothing if that is no terminal.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Bar {
        // Draws nothing before it is told something, and never if stderr is
        // no terminal.
        Bar(ProgressBar::no_length())
    }

    /// Shows progress as it comes in JSON: `{"doing", "done", "total"}`.
    pub(super) fn show(&self, progress: &Value) {
        self.update(
            progress["doing"].as_str().unwrap_or_default(),
            progress["done"].as_u64().unwrap_or_default(),
            progress["total"].as_u64().unwrap_or_default(),
        );
    }

    /// Prints something while the bar is out of the way.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }

    /// Removes it.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn update(&self, doing: &str, done: u64, total: u64) {
        if self.0.message() != doing || self.0.length().is_some() != (total > 0) {
            let template = match total {
                0 => "{spinner} {msg} {human_pos}",
                _ => "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.0.set_style(style);
            }
            self.0.set_message(doing.to_owned());
            self.0.reset_eta();
            self.0.enable_steady_tick(Duration::from_millis(200));
        }
        match total {
            0 => self.0.unset_length(),
            _ => self.0.set_length(total),
        }
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}
