//! `.status`: what a store tells about itself, as files.

use crate::error::{Error, Result};
use crate::store::Store;

/// A file of `.status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatusFile {
    /// The store in numbers.
    Store,
    /// Its history, as a table.
    CapacityTable,
    /// The same, drawn.
    CapacityChart,
    /// What happened.
    Events,
    /// For monitoring.
    Metrics,
}

impl StatusFile {
    /// All of them.
    pub const ALL: [StatusFile; 5] = [
        StatusFile::Store,
        StatusFile::CapacityTable,
        StatusFile::CapacityChart,
        StatusFile::Events,
        StatusFile::Metrics,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            StatusFile::Store => "store.toml",
            StatusFile::CapacityTable => "capacity.csv",
            StatusFile::CapacityChart => "capacity.svg",
            StatusFile::Events => "events.jsonl",
            StatusFile::Metrics => "metrics.prom",
        }
    }

    /// What it says now. May read map pages.
    pub fn render(self, store: &Store) -> Result<String> {
        match self {
            StatusFile::Store => {
                toml::to_string(&store.status()?).map_err(|error| Error::Damaged {
                    what: "store.toml".into(),
                    detail: error.to_string(),
                })
            }
            StatusFile::CapacityTable => Ok(store.history().to_csv()),
            StatusFile::CapacityChart => store.history().to_svg(),
            StatusFile::Events => Ok(store.events().text()),
            StatusFile::Metrics => store.prometheus(),
        }
    }
}
