//! Automatic policies on a real mount: how they are written, and what they
//! do over a year, with the daemon's clock in the test's hand.

mod common;

use common::bytes::open;
use common::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

const EDQUOT: i32 = libc::EDQUOT;
const EINVAL: i32 = libc::EINVAL;
const EBUSY: i32 = libc::EBUSY;

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn json(arguments: &[&str]) -> Value {
    let said = snapdisk(arguments);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// The contract's "written by echo, cp, vim, sed -i; EINVAL from write or
/// close for a bad one, the reason in policy.rejected, the one in force
/// untouched".
#[test]
fn a_policy_is_written_as_files_are() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let web = disk_with(mount.point(), "web", b"web");
    let dir = web.join(".snapshots");
    let (policy, rejected) = (dir.join("policy.toml"), dir.join("policy.rejected"));
    let at = dir.display().to_string();

    // A bad line: echo itself fails, and there is no policy.
    let said = sh_fails(&format!("echo 'hours = [24]' > {at}/policy.toml"));
    assert!(said.contains("Invalid argument"), "{said}");
    assert!(!policy.exists());
    let why = text(&rejected);
    assert!(
        why.contains("line 1, column 10") && why.contains("0 to 23"),
        "{why}"
    );
    // What is missing shows at the end.
    let said = sh_fails(&format!("cp <(echo 'retain_days = 3') {at}/policy.toml"));
    assert!(said.contains("Invalid argument"), "{said}");
    assert!(text(&rejected).contains("`hours` is missing"));

    let good = "hours = [6]\nretain_days = 3\n";
    sh(&format!(
        "printf '{}' > {at}/policy.toml",
        good.replace('\n', "\\n")
    ));
    assert_eq!(text(&policy), good);
    assert!(!rejected.exists(), "a good one ends the rejection");
    for bad in [
        "echo 'hourz = [1]' > policy.toml",
        "echo 'hours = [1]\nhours = [2]' > policy.toml",
        "echo 'weekdays = [\"mo\"]' >> policy.toml",
        "sed -i 's/6/60/' policy.toml",
        "cp /bin/ls policy.toml",
        "truncate -s 3 policy.toml",
        "head -c 1M /dev/zero > policy.toml",
        "mv policy.toml ../policy.toml",
        "mkdir policy.toml",
    ] {
        sh_fails(&format!("cd {at}; {bad}"));
        assert_eq!(text(&policy), good, "{bad}");
    }
    // What is only begun is none; the shell does not look at what its close
    // says, cp does.
    sh(&format!("cd {at}; printf 'hours = [' > policy.toml"));
    assert_eq!(text(&policy), good);
    assert!(text(&rejected).contains("line 1"));
    // Nothing written is nothing meant.
    sh(&format!("cd {at}; : > policy.toml; touch policy.toml"));
    assert_eq!(text(&policy), good);

    // In pieces, by several programs.
    sh(&format!(
        "cd {at}; {{ echo 'hours = ['; echo '1,'; /bin/echo '2]'; }} > policy.toml"
    ));
    assert_eq!(text(&policy), "hours = [\n1,\n2]\n");
    // Also where there was none, and a part of it is one already.
    fs::remove_file(&policy).expect("rm");
    sh(&format!(
        "cd {at}; {{ echo 'hours = [7]'; /bin/echo '# x'; cat <(echo 'retain_days = 3'); }} > policy.toml"
    ));
    assert_eq!(text(&policy), "hours = [7]\n# x\nretain_days = 3\n");
    sh(&format!(
        "cd {at}; printf 'hours = [\\n1,\\n2]\\n' > policy.toml"
    ));
    sh(&format!("cd {at}; sed -i 's/^2/3/' policy.toml"));
    assert_eq!(text(&policy), "hours = [\n1,\n3]\n");
    sh(&format!(
        "cd {at}; echo 'skip_unchanged = true' >> policy.toml"
    ));
    assert!(text(&policy).ends_with("skip_unchanged = true\n"));
    sh(&format!(
        "cd {at}; chmod 600 policy.toml; chown 1:1 policy.toml; touch -d 2020-01-01 policy.toml"
    ));
    // It is there after a remount, scratch files are not.
    sh(&format!(
        "cd {at}; echo x > scratch.tmp; ln -s nowhere broken || true"
    ));
    let before = text(&policy);
    mount.remount();
    assert_eq!(text(&policy), before);
    assert!(!dir.join("scratch.tmp").exists());
    let listed = sh(&format!("ls {at}"));
    assert_eq!(listed, "policy.toml\n");

    // Scratch files are few and small, and in nobody's way.
    for number in 0..16 {
        fs::write(dir.join(format!("f{number}")), "x").expect("a scratch file");
    }
    assert_errno(File::create(dir.join("f16")), EDQUOT, "a seventeenth");
    assert_errno(
        fs::create_dir(dir.join("f3")),
        libc::EEXIST,
        "a snapshot of that name",
    );
    let long = vec![b'#'; 70_000];
    assert_errno(fs::write(dir.join("f3"), &long), libc::EFBIG, "64 KiB");
    assert_eq!(text(&dir.join("f4")), "x");
    for number in 0..16 {
        fs::remove_file(dir.join(format!("f{number}"))).expect("it goes");
    }
    fs::remove_file(&policy).expect("rm ends it");
    assert!(!policy.exists());
    assert_errno(fs::remove_file(&policy), libc::ENOENT, "again");
    let events = sh(&format!(
        "cat {}/.status/events.jsonl",
        mount.point().display()
    ));
    for what in ["policy_set", "policy_rejected", "policy_ended"] {
        assert!(events.contains(what), "{what} in {events}");
    }
}

/// An editor that renames the file away, writes a new one and removes the
/// old one; and what a bad text in it comes to.
#[test]
fn an_editor_with_a_backup_changes_a_policy() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"web");
    let dir = web.join(".snapshots");
    let policy = dir.join("policy.toml");
    let backup = dir.join("policy.toml~");
    fs::write(&policy, "hours = [6]\n").expect("a policy");
    let in_force = || {
        let list = json(&[
            "policy",
            "list",
            "--json",
            &mount.point().display().to_string(),
        ]);
        list["policies"].as_array().map_or(0, Vec::len)
    };

    fs::rename(&policy, &backup).expect("it is renamed away");
    assert!(!policy.exists());
    assert_eq!(in_force(), 1, "but it is in force");
    fs::write(&policy, "hours = [7]\n").expect("a new one");
    fs::remove_file(&backup).expect("the backup goes");
    assert_eq!(text(&policy), "hours = [7]\n");

    fs::rename(&policy, &backup).expect("it is renamed away");
    assert_errno(fs::write(&policy, "hours = [77]\n"), EINVAL, "a bad one");
    assert_eq!(
        text(&policy),
        "hours = [7]\n",
        "the one in force shows again"
    );
    fs::rename(&backup, &policy).expect("the editor puts it back");
    assert_eq!(text(&policy), "hours = [7]\n");

    // Moved away and removed is removed.
    fs::rename(&policy, &backup).expect("it is renamed away");
    fs::remove_file(&backup).expect("it goes");
    assert_eq!(in_force(), 0);

    if skipped(&[Need::Program("vim")]) {
        return;
    }
    fs::write(&policy, "hours = [6]\n").expect("a policy");
    let vim = |edit: &str| {
        let path = policy.display().to_string();
        let mut vim = command(
            "vim",
            &["-Nu", "NONE", "-es", "-c", edit, "-c", "wq", &path],
        );
        finish_status(vim.env("HOME", "/nonexistent"))
    };
    assert!(vim("%s/6/8/"));
    assert_eq!(text(&policy), "hours = [8]\n");
    assert!(!vim("%s/8/88/"), "vim hears of a bad one");
    assert_eq!(text(&policy), "hours = [8]\n");
}

fn finish_status(command: &mut std::process::Command) -> bool {
    command.output().expect("it runs").status.success()
}

/// "Named policies, attached by symlink to any number of disks, changed for
/// all at once, EBUSY to delete while attached."
#[test]
fn a_named_policy_holds_many_disks() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let point = mount.point().to_owned();
    let named = point.join(".policies/nightly.toml");
    fs::write(&named, "hours = [3]\n").expect("a named policy");
    let dirs: Vec<PathBuf> = ["db", "web"]
        .iter()
        .map(|name| disk_with(&point, name, b"data").join(".snapshots"))
        .collect();
    let own = |dir: &Path| dir.join("policy.toml");
    symlink("../../.policies/nightly.toml", own(&dirs[0])).expect("relative");
    symlink(&named, own(&dirs[1])).expect("absolute");
    for target in [
        "../../.policies/none.toml",
        "policy.toml",
        "../../.policies",
        "/etc/passwd",
        "../../../.policies/nightly.toml/x",
        "../../db/.snapshots/policy.toml",
    ] {
        let link = dirs[0].join("other");
        assert_errno(symlink(target, &link), EINVAL, target);
    }
    assert_errno(
        symlink("x", point.join(".policies/y.toml")),
        libc::EPERM,
        "a link there",
    );
    assert_errno(fs::remove_file(&named), EBUSY, "an attached one");
    let list = json(&["policy", "list", "--json", &point.display().to_string()]);
    assert_eq!(
        list["policies"][0]["disks"],
        serde_json::json!(["db", "web"]),
        "{list}"
    );

    // Through the link it is the named one that is written.
    sh(&format!("echo 'hours = [4]' > {}", own(&dirs[1]).display()));
    assert_eq!(text(&named), "hours = [4]\n");
    assert_eq!(text(&own(&dirs[0])), "hours = [4]\n");
    // Renamed, it stays attached; over another, that one changes.
    fs::rename(&named, point.join(".policies/late.toml")).expect("a rename");
    mount.remount();
    let target = fs::read_link(own(&dirs[0])).expect("a link");
    assert_eq!(target, Path::new("../../.policies/late.toml"));
    // sed -i makes a file of its own in the link's place.
    sh(&format!("sed -i s/4/5/ {}", own(&dirs[1]).display()));
    assert_eq!(text(&own(&dirs[1])), "hours = [5]\n");
    assert_eq!(text(&own(&dirs[0])), "hours = [4]\n");
    // ln -sf goes by a temporary name.
    sh(&format!(
        "ln -sf ../../.policies/late.toml {}",
        own(&dirs[1]).display()
    ));
    assert!(own(&dirs[1]).is_symlink());
    fs::remove_file(own(&dirs[1])).expect("detached");
    // A disk that goes lets its policy go.
    fs::remove_file(point.join("db/disk.img")).expect("dropped");
    for entry in fs::read_dir(&dirs[0]).expect("a list") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("its type").is_dir() {
            fs::remove_dir(entry.path()).expect("a snapshot goes");
        }
    }
    fs::remove_dir(point.join("db")).expect("the disk goes");
    fs::remove_file(point.join(".policies/late.toml")).expect("nothing holds it");

    for number in 0..100 {
        let path = point.join(format!(".policies/p{number}.toml"));
        fs::write(path, "hours = [0]\n").expect("one of a hundred");
    }
    assert_errno(
        fs::write(point.join(".policies/more.toml"), "hours = [0]\n"),
        EDQUOT,
        "one more",
    );
    assert!(!point.join(".policies/more.toml").exists());
    // One of them can be edited as vim does it.
    sh(&format!(
        "cd {}/.policies; mv p7.toml p7.toml~; echo 'hours = [1]' > p7.toml; rm p7.toml~",
        point.display()
    ));
    assert_eq!(text(&point.join(".policies/p7.toml")), "hours = [1]\n");
}

/// Named policies are renamed, copied and given modes as other files are,
/// whichever way an editor or a script takes.
#[test]
fn named_policies_are_files_to_scripts() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let dir = mount.path(".policies");
    let there = || {
        let names = fs::read_dir(&dir).expect("a list");
        let names = names.map(|entry| entry.expect("an entry").file_name());
        let names: BTreeSet<String> = names.map(|name| name.display().to_string()).collect();
        names.into_iter().collect::<Vec<_>>().join(" ")
    };
    let run = |script: &str| sh(&format!("cd {}; {script}", dir.display()));

    run("echo 'hours = [3]' > a.toml; echo 'hours = [4]' > new.toml");
    // A backup that is kept, and a new one in its place.
    run("mv a.toml a.bak; mv new.toml a.toml");
    assert_eq!(there(), "a.bak a.toml");
    assert_eq!(run("cat a.toml a.bak"), "hours = [4]\nhours = [3]\n");
    run("rm a.bak");
    assert_eq!(there(), "a.toml");
    // By way of another name: attached disks follow.
    let web = disk_with(mount.point(), "web", b"web");
    let own = web.join(".snapshots/policy.toml");
    symlink("../../.policies/a.toml", &own).expect("it is attached");
    run("mv a.toml a.bak; mv a.bak b.toml");
    assert_eq!(there(), "b.toml");
    let target = fs::read_link(&own).expect("a link");
    assert_eq!(target, Path::new("../../.policies/b.toml"));
    assert_eq!(text(&own), "hours = [4]\n");
    fs::remove_file(&own).expect("detached");
    // What a backup is replaced by another goes with it.
    run("echo 'hours = [5]' > c.toml; mv b.toml x; mv c.toml x; mv x d.toml");
    mount.remount();
    assert_eq!(there(), "d.toml");
    assert_eq!(run("cat d.toml; rm d.toml"), "hours = [5]\n");

    // A copy is no refusal, and takes the mode that cp -p gives it.
    run("echo 'hours = [6]' > a.toml; chmod 600 a.toml; cp -p a.toml b.toml");
    run("echo 'hours = [7]' > c.toml; cp -p a.toml c.toml");
    assert_eq!(run("cat b.toml c.toml"), "hours = [6]\nhours = [6]\n");
    assert_eq!(run("stat -c %a b.toml c.toml"), "600\n600\n");
    let events = text(&mount.path(".status/events.jsonl"));
    assert!(!events.contains("copy_file_range"), "{events}");
    // What snapdisk makes itself is nobody else's.
    let latest = web.join(".snapshots/latest");
    assert_errno(File::create(latest), libc::EPERM, "made by hand");
}

/// A mount whose daemon believes whatever time the test wants.
struct Clock {
    // Dropped in this order: the mount before its directory.
    mount: Mount,
    store: TestStore,
    nudges: u32,
}

impl Clock {
    fn new(at: &str) -> Clock {
        let store = TestStore::new();
        let file = store.path().join("clock");
        fs::write(&file, format!("@{at}\n")).expect("the clock");
        let library = sh("ls /usr/lib/*/faketime/libfaketimeMT.so.1");
        let environment = [
            ("LD_PRELOAD", library.trim().to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            // Only the wall clock.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_RESET", "1".to_owned()),
            ("TZ", "UTC".to_owned()),
        ];
        let mount = Mount::with_environment(&store.path(), &store.point(), &[], &environment);
        Clock {
            store,
            mount,
            nudges: 0,
        }
    }

    fn set(&self, at: &str) {
        let file = self.store.path().join("clock");
        let next = self.store.path().join("clock.next");
        fs::write(&next, format!("@{at}\n")).expect("the clock");
        fs::rename(next, file).expect("the clock");
    }

    /// Makes the daemon look at its clock now, and not within a minute.
    fn nudge(&mut self, disk: &Path) {
        self.nudges += 1;
        let value = self.nudges.to_string();
        let snapshot = disk.join(".snapshots/nudge");
        ::snapdisk::sys::set_xattr(&snapshot, "user.n", value.as_bytes()).expect("a tag");
    }

    fn events(&self) -> Vec<Value> {
        let text = text(&self.mount.path(".status/events.jsonl"));
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }

    fn count(&self, what: &str) -> usize {
        self.events()
            .iter()
            .filter(|event| event["event"] == what)
            .count()
    }
}

fn automatic(disk: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(disk.join(".snapshots")).expect("a list");
    entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.starts_with("auto-"))
        .collect()
}

/// A year of a real store, day by day: what the plan said is what was taken
/// and deleted, quota and all; held ones stay; a remount in between changes
/// nothing.
#[test]
fn a_year_goes_by_as_planned() {
    if skipped(&[Need::Mount, Need::Program("faketime")]) {
        return;
    }
    let mut clock = Clock::new("2026-01-01 00:30:00");
    let web = disk_with(clock.mount.point(), "web", &noise(1, 1 << 20));
    wait_ready(&take(&web, "nudge"));
    let point = clock.mount.point().display().to_string();
    snapdisk(&["set", &point, "max_automatic_snapshots=20"]);
    let policy = "hours = [12]\nretain_days = 30\ntimezone = \"UTC\"\n";
    fs::write(web.join(".snapshots/policy.toml"), policy).expect("a policy");
    let plan = json(&[
        "policy",
        "plan",
        "--json",
        "--days",
        "365",
        &web.display().to_string(),
    ]);
    let planned: Vec<String> = plan["slots"]
        .as_array()
        .expect("slots")
        .iter()
        .map(|slot| slot["snapshot"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(planned.len(), 365);
    for (day, name) in planned.iter().enumerate() {
        // auto-20260101T120000Z.
        let date = format!("{}-{}-{}", &name[5..9], &name[9..11], &name[11..13]);
        clock.set(&format!("{date} 12:00:00"));
        if day == 100 {
            // Held, it makes no room; another one does.
            let held = web.join(".snapshots").join(&planned[90]);
            ::snapdisk::sys::set_xattr(&held, "snapdisk.hold", b"audit").expect("a hold");
        }
        if day == 200 {
            // As after a reboot.
            clock.mount.kill9();
            clock.mount.remount();
        }
        let image = open(&web.join("disk.img"));
        image
            .write_all_at(&[day as u8; 512], (day as u64 % 256) * 4096)
            .expect("a write");
        drop(image);
        let path = web.join(".snapshots").join(name);
        wait_until(&format!("{name} is taken"), || {
            clock.nudge(&web);
            path.exists()
        });
        wait_ready(&path);
    }
    wait_until("the last made room", || automatic(&web).len() == 20);
    // Those there are: the newest 19, and the one that is held.
    let mut expected: BTreeSet<String> = planned[planned.len() - 19..].iter().cloned().collect();
    expected.insert(planned[90].clone());
    assert_eq!(automatic(&web), expected);
    // A limit that was lowered is reached at the next slot.
    snapdisk(&["set", &point, "max_automatic_snapshots=5"]);
    clock.set("2027-01-01 12:00:00");
    clock.nudge(&web);
    wait_until("there is room for one", || automatic(&web).len() == 5);
    assert!(automatic(&web).contains("auto-20270101T120000Z"));
    assert_eq!(clock.count("missed"), 0);
    let by_quota = |event: &Value| event["event"] == "deleted" && event["by"] == "quota";
    assert!(clock.events().iter().any(by_quota));
    assert_sound(clock.mount.point());
}

/// Retention, clock jumps and slots that passed unseen: "forwards: one made
/// up, and after more than 48 h nothing is deleted for 24 h; backwards: none
/// twice; the newest automatic snapshot is never deleted by it".
#[test]
fn a_clock_that_jumps_takes_one_and_deletes_none() {
    if skipped(&[Need::Mount, Need::Program("faketime")]) {
        return;
    }
    let mut clock = Clock::new("2026-03-01 00:30:00");
    let web = disk_with(clock.mount.point(), "web", b"web");
    wait_ready(&take(&web, "nudge"));
    let policy = "hours = [6, 12]\nretain_days = 1\ntimezone = \"UTC\"\n";
    fs::write(web.join(".snapshots/policy.toml"), policy).expect("a policy");
    let reach = |clock: &mut Clock, at: &str, name: &str| {
        clock.set(at);
        let path = web.join(".snapshots").join(name);
        wait_until(&format!("{name} is taken"), || {
            clock.nudge(&web);
            path.exists()
        });
        wait_ready(&path);
    };
    reach(&mut clock, "2026-03-01 06:00:00", "auto-20260301T060000Z");
    reach(&mut clock, "2026-03-01 12:00:00", "auto-20260301T120000Z");
    // A day later the first has ended; by hours, so that nothing jumps.
    reach(&mut clock, "2026-03-02 06:00:00", "auto-20260302T060000Z");
    wait_until("the first ends", || {
        clock.nudge(&web);
        !automatic(&web).contains("auto-20260301T060000Z")
    });
    // Back by six hours: the slot does not come twice.
    clock.set("2026-03-02 00:00:00");
    clock.nudge(&web);
    reach(&mut clock, "2026-03-02 12:00:00", "auto-20260302T120000Z");
    assert_eq!(clock.count("taken"), 5, "{:?}", clock.events());

    // Forward by ten days: one is made up, the others are told as missed, and
    // nothing that is over its date goes.
    let ended = "auto-20260301T120000Z";
    wait_until("the second ends", || !automatic(&web).contains(ended));
    let before = automatic(&web);
    clock.set("2026-03-12 13:00:00");
    clock.nudge(&web);
    wait_until("one is made up", || {
        automatic(&web).len() == before.len() + 1
    });
    wait_until("it is told", || clock.count("clock_jump") == 1);
    clock.nudge(&web);
    take(&web, "after");
    assert!(
        automatic(&web).is_superset(&before),
        "{:?}",
        automatic(&web)
    );
    let missed: Vec<Value> = clock.events();
    let missed = missed
        .iter()
        .find(|event| event["event"] == "missed")
        .expect("missed ones");
    assert!(
        missed["reason"]
            .as_str()
            .is_some_and(|why| why.contains("18 more")),
        "{missed}"
    );

    // Not mounted for three days is the same.
    clock.mount.unmount();
    clock.set("2026-03-16 13:00:00");
    clock.mount.remount();
    wait_until("one is made up", || {
        automatic(&web).len() == before.len() + 2
    });
    wait_until("it is told", || clock.count("clock_jump") == 2);
    assert!(automatic(&web).is_superset(&before));
    // A restart does not end the day of quiet.
    clock.mount.unmount();
    clock.set("2026-03-16 15:00:00");
    clock.mount.remount();
    clock.nudge(&web);
    take(&web, "restarted");
    assert!(automatic(&web).is_superset(&before));
    // After it they end.
    clock.mount.unmount();
    clock.set("2026-03-17 14:00:00");
    clock.mount.remount();
    let newest = BTreeSet::from(["auto-20260317T140000Z".to_owned()]);
    wait_until("only the newest stays", || automatic(&web) == newest);

    // The next slot is on Monday: until then the newest outlives its date,
    // while another that is over its date goes.
    fs::write(
        web.join(".snapshots/policy.toml"),
        policy.to_owned() + "weekdays = [\"mon\"]\n",
    )
    .expect("a policy");
    let dated = take(&web, "dated");
    ::snapdisk::sys::set_xattr(&dated, "snapdisk.expires", b"2026-03-18").expect("a date");
    clock.set("2026-03-19 10:00:00");
    clock.nudge(&web);
    wait_until("what is over its date goes", || !dated.exists());
    assert_eq!(automatic(&web), newest);
}

/// "A slot is skipped while the previous snapshot is still sealing,
/// unchanged ones are recorded, a disk without an image too."
#[test]
fn slots_without_a_snapshot_are_recorded() {
    if skipped(&[Need::Mount, Need::Program("faketime")]) {
        return;
    }
    let mut clock = Clock::new("2026-03-01 00:30:00");
    let web = disk_with(clock.mount.point(), "web", b"web");
    let bare = clock.mount.path("bare");
    fs::create_dir(&bare).expect("a disk without an image");
    wait_ready(&take(&web, "nudge"));
    let policy = "hours = [6, 12]\nskip_unchanged = true\ntimezone = \"UTC\"\n";
    for disk in [&web, &bare] {
        fs::write(disk.join(".snapshots/policy.toml"), policy).expect("a policy");
    }
    clock.set("2026-03-01 06:00:00");
    clock.nudge(&web);
    wait_until("unchanged", || clock.count("unchanged") == 1);
    wait_until("missed", || clock.count("missed") == 1);
    assert!(automatic(&web).is_empty());
    open(&web.join("disk.img"))
        .write_all_at(b"new", 0)
        .expect("a write");
    clock.set("2026-03-01 12:00:00");
    clock.nudge(&web);
    wait_until("it changed", || automatic(&web).len() == 1);
    // An automatic one that gets a name is a person's from then on.
    let auto = web.join(".snapshots/auto-20260301T120000Z");
    assert_eq!(info(&auto)["kind"].as_str(), Some("automatic"));
    let expires = info(&auto)["expires"].as_str().map(str::to_owned);
    assert!(expires.is_some_and(|at| at.starts_with("2026-03-31T12:00:")));
    fs::rename(&auto, web.join(".snapshots/kept")).expect("mv");
    let kept = info(&web.join(".snapshots/kept"));
    assert_eq!(kept["kind"].as_str(), Some("manual"));
    assert!(!kept.contains_key("expires"), "{kept}");
    let by = clock.events();
    let taken = by
        .iter()
        .find(|event| event["by"] == "policy policy.toml")
        .expect("by the policy");
    assert_eq!(taken["slot"], "2026-03-01T12:00:00Z");
}

/// "A clock before 1970 or in 2100": a policy works there, too.
#[test]
fn a_clock_may_be_anywhere() {
    if skipped(&[Need::Mount, Need::Program("faketime")]) {
        return;
    }
    for (start, slot, name) in [
        (
            "1969-12-30 23:30:00",
            "1969-12-31 06:00:00",
            "auto-19691231T060000Z",
        ),
        (
            "2100-02-28 23:30:00",
            "2100-03-01 06:00:00",
            "auto-21000301T060000Z",
        ),
    ] {
        let mut clock = Clock::new(start);
        let web = disk_with(clock.mount.point(), "web", b"web");
        wait_ready(&take(&web, "nudge"));
        let policy = "hours = [6]\ntimezone = \"UTC\"\n";
        fs::write(web.join(".snapshots/policy.toml"), policy).expect("a policy");
        clock.set(slot);
        clock.nudge(&web);
        let path = web.join(".snapshots").join(name);
        wait_until(name, || path.exists());
        wait_ready(&path);
        assert_eq!(
            fs::read(path.join("disk.img")).expect("it can be read"),
            b"web"
        );
        clock.mount.remount();
        assert_sound(clock.mount.point());
    }
}

/// The kernel checks permissions: whoever owns a disk writes its policy and
/// takes its snapshots, nobody else does; named ones and groups are root's.
#[test]
fn a_second_user_has_the_policies_of_own_disks() {
    if skipped(&[Need::Mount, Need::Program("setpriv")]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let point = mount.point().display().to_string();
    let web = disk_with(mount.point(), "web", b"web");
    let db = disk_with(mount.point(), "db", b"db");
    sh(&format!(
        "chown {NOBODY}:{NOBODY} {0} {0}/disk.img",
        web.display()
    ));
    let as_nobody = |script: &str| {
        format!(
            "cd {point}; setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups sh -ec '{script}'"
        )
    };
    sh(&as_nobody(
        "echo \"hours = [3]\" > web/.snapshots/policy.toml; mkdir web/.snapshots/mine; \
         cat .status/metrics.prom > /dev/null",
    ));
    let info = info(&web.join(".snapshots/mine"));
    assert_eq!(info["kind"].as_str(), Some("manual"));
    for refused in [
        "echo \"hours = [3]\" > db/.snapshots/policy.toml",
        "rm web/../db/.snapshots/policy.toml",
        "echo \"hours = [3]\" > .policies/mine.toml",
        "mkdir .snapshots/all",
        "mkdir db/.snapshots/mine",
        "setfattr -n snapdisk.hold -v x db/.snapshots/roots",
    ] {
        fs::create_dir_all(db.join(".snapshots/roots")).expect("a snapshot");
        fs::write(db.join(".snapshots/policy.toml"), "hours = [9]\n").expect("a policy");
        let said = sh_fails(&as_nobody(refused));
        assert!(
            said.contains("ermission") || said.contains("denied"),
            "{refused}: {said}"
        );
        assert_eq!(text(&db.join(".snapshots/policy.toml")), "hours = [9]\n");
    }
    assert!(!mount.path(".snapshots/all").exists());
    let by = fs::read_to_string(mount.path(".status/events.jsonl")).expect("events");
    assert!(by.contains(&format!("user {NOBODY}")), "{by}");
}
