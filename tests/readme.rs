//! Goal: what the README tells a reader to paste works.
//!
//! Method: the session's lines are run as they stand, but with a mount point
//! and directories of the test's own. A line that says `# refused` has to
//! fail, every other has to succeed.

mod common;

use common::{Need, Outcome, TestStore, skipped};
use std::path::Path;
use std::process::Command;

fn session() -> Vec<&'static str> {
    let readme = include_str!("../README.md");
    let section = readme
        .split("\n## ")
        .find(|part| part.starts_with("A session"));
    let blocks = section.unwrap_or_default().split("```sh\n").skip(1);
    blocks
        .filter_map(|block| block.split("```").next())
        .flat_map(str::lines)
        .collect()
}

/// Unmounts what a failed session leaves behind.
struct Unmounted(Vec<String>);

impl Drop for Unmounted {
    fn drop(&mut self) {
        for directory in &self.0 {
            // Not mounted, after a session that went to its end.
            let _ = Command::new("umount").arg(directory).output();
        }
    }
}

/// README, "A session": every line does what it says.
#[test]
fn the_session_works_as_it_is_pasted() -> Outcome {
    if skipped(&[Need::Loop, Need::Program("setfattr")]) {
        return Ok(());
    }
    let lines = session();
    assert!(lines.len() > 25, "the README has the whole session");
    let store = TestStore::new();
    let mount = store.mount();
    let place = |name: &str| -> std::io::Result<String> {
        let path = store.scratch(name);
        std::fs::create_dir_all(&path)?;
        Ok(path.display().to_string())
    };
    let (old, srv) = (place("old")?, place("srv")?);
    let _unmounted = Unmounted(vec![old.clone(), srv.clone()]);
    let binaries = Path::new(common::SNAPDISK).parent().ok_or("no directory")?;
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH")?);
    for line in lines {
        let here = line
            .replace("/mnt/disks", &mount.point().display().to_string())
            .replace(" /old", &format!(" {old}"))
            .replace(" /srv", &format!(" {srv}"));
        let output = Command::new("bash")
            .args(["-c", &here])
            .env("PATH", &path)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            output.status.success(),
            !line.contains("# refused"),
            "{here}\n{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        if line.starts_with("grep held_by") {
            assert!(said.contains("golden.img"), "info.toml says who holds it");
        }
    }
    Ok(())
}
