//! Goal: a daemon that is killed loses nothing that it had acknowledged.
//!
//! Method: SIGKILL at random moments, real ones, while fio or a filesystem
//! on a loop device writes and syncs and snapshots come and go. After each
//! the store is mounted again in place of the dead mount; what was synced is
//! compared with what was noted of it outside, snapshots with the hashes
//! that they had when they were taken, and the filesystem is checked. The
//! seed is printed; `SNAPDISK_KILL_ROUNDS` says how many rounds there are.

mod common;

use common::bytes::{Random, open, read_direct};
use common::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

const SECTOR: usize = 512;
const SIZE: usize = 8 << 20;

fn rounds(default: u64) -> u64 {
    env_number("SNAPDISK_KILL_ROUNDS").unwrap_or(default)
}

fn seed() -> Random {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = now.expect("after 1970").as_nanos() as u64;
    println!("seed {seed}");
    Random(seed)
}

/// Sectors as a writer knows them: the value last acknowledged, and those
/// written since.
#[derive(Clone, Default)]
struct Sector {
    synced: u64,
    since: Vec<u64>,
}

/// Writes numbered sectors and syncs now and then, noting what was
/// acknowledged, until a call fails because the daemon is dead.
fn write_until_dead(
    image: &File,
    mut random: Random,
    sectors: &Mutex<Vec<Sector>>,
    next: &AtomicU64,
) {
    loop {
        for _ in 0..1 + random.below(20) {
            let number = next.fetch_add(1, Ordering::SeqCst);
            let count = 1 + random.below(16) as usize;
            let first = random.below((SIZE / SECTOR - count) as u64) as usize;
            {
                let mut sectors = sectors.lock().expect("sectors");
                for sector in &mut sectors[first..first + count] {
                    sector.since.push(number);
                }
            }
            let bytes = number.to_le_bytes().repeat(count * SECTOR / 8);
            if image.write_all_at(&bytes, (first * SECTOR) as u64).is_err() {
                return;
            }
        }
        let before = sectors.lock().expect("sectors").clone();
        if image.sync_data().is_err() {
            return;
        }
        // The only writer: what was written before the sync is there.
        let mut sectors = sectors.lock().expect("sectors");
        for (sector, before) in sectors.iter_mut().zip(before) {
            if let Some(last) = before.since.last() {
                sector.synced = *last;
                sector.since.retain(|number| number > last);
            }
        }
    }
}

fn check_sectors(image: &[u8], sectors: &mut [Sector]) {
    for (at, (bytes, sector)) in image.chunks_exact(SECTOR).zip(sectors).enumerate() {
        let tag = &bytes[..8];
        assert!(
            bytes.chunks_exact(8).all(|word| word == tag),
            "sector {at} is torn"
        );
        let found = u64::from_le_bytes(tag.try_into().expect("8 bytes"));
        assert!(
            found == sector.synced || sector.since.contains(&found),
            "sector {at} is of write {found}, expected {} or one of {:?}",
            sector.synced,
            sector.since
        );
        *sector = Sector {
            synced: found,
            since: Vec::new(),
        };
    }
}

fn hash(snapshot: &Path) -> std::io::Result<blake3::Hash> {
    Ok(blake3::hash(&read_direct(&snapshot.join("disk.img"))?))
}

/// Takes and deletes snapshots until the daemon is dead, and notes what was
/// acknowledged.
fn snapshots_until_dead(disk: &Path, mut random: Random, round: u64, known: &Mutex<Known>) {
    for number in 0.. {
        let snapshot = disk.join(format!(".snapshots/r{round}-{number}"));
        if fs::create_dir(&snapshot).is_err() {
            return;
        }
        let Ok(found) = hash(&snapshot) else { return };
        known
            .lock()
            .expect("snapshots")
            .insert(snapshot, Some(found));
        if random.below(3) == 0 {
            let victim = {
                let known = known.lock().expect("snapshots");
                let there: Vec<&PathBuf> = known
                    .iter()
                    .filter(|(_, h)| h.is_some())
                    .map(|(s, _)| s)
                    .collect();
                there[random.below(there.len() as u64) as usize].clone()
            };
            // While it is on its way it may be there or not.
            known.lock().expect("snapshots").remove(&victim);
            if fs::remove_dir(&victim).is_err() {
                return;
            }
            known.lock().expect("snapshots").insert(victim, None);
        }
    }
}

/// fio with a job of random writes with checksums, each acknowledged as being
/// on disk. How far it came is in a file in `state`.
fn fio(image: &Path, seed: u64, state: &Path) -> Command {
    let mut fio = command("fio", &["--name=kill", "--rw=randwrite", "--bs=4k"]);
    fio.args(["--size=8M", "--ioengine=psync", "--sync=1"]);
    fio.args(["--verify=crc32c", "--do_verify=0"]);
    fio.arg(format!("--randseed={}", seed % 1_000_000));
    fio.arg(format!("--filename={}", image.display()));
    fio.arg(format!("--aux-path={}", state.display()));
    fio.current_dir(state).stderr(Stdio::null());
    fio
}

/// Snapshots that were taken and deleted: a hash for what is there, None for
/// what was deleted.
type Known = BTreeMap<PathBuf, Option<blake3::Hash>>;

/// Contract and invariants 1 and 2, with SIGKILL: what fsync acknowledged is
/// there, each other sector is old or new; each acknowledged snapshot is
/// byte-exact, now, sealed and later; none that was deleted is back; every
/// write that fio saw acknowledged before the kill it finds with its checksum.
#[test]
fn what_was_acknowledged_survives_kills() {
    if skipped(&[Need::Mount, Need::Program("fio")]) {
        return;
    }
    let (store, mut random) = (TestStore::new(), seed());
    let mut mount = store.mount();
    let own = disk_with(mount.point(), "own", &vec![0; SIZE]);
    let fios = disk_with(mount.point(), "fio", &vec![0; SIZE]);
    let state = store.scratch("fio-state");
    fs::create_dir(&state).expect("a directory");
    let state_file = state.join("local-kill-0-verify.state");
    let trigger = state.join("trigger");
    run(command("sync", &[]).arg(own.join("disk.img")));
    let sectors = Mutex::new(vec![Sector::default(); SIZE / SECTOR]);
    let (next, known) = (
        AtomicU64::new(1),
        [(); 2].map(|()| Mutex::new(Known::new())),
    );
    let (mut kept, mut verified, mut in_flight) = (0, 0, 0);
    let total = rounds(20);
    for round in 0..total {
        let fio_seed = random.next();
        // fio itself ends the daemon, having noted which writes have returned.
        let mut job = fio(&fios.join("disk.img"), fio_seed, &state);
        job.arg(format!("--trigger-file={}", trigger.display()));
        job.arg(format!("--trigger=kill -KILL {}", mount.process()));
        let mut job = job.stdout(Stdio::null()).spawn().expect("fio starts");
        let seeds = [(); 3].map(|()| Random(random.next()));
        let moment = Duration::from_micros(random.below(300_000));
        thread::scope(|scope| {
            // Opened before the kill may come.
            let image = open(&own.join("disk.img"));
            let (sectors, next) = (&sectors, &next);
            let [a, b, c] = seeds;
            scope.spawn(move || write_until_dead(&image, a, sectors, next));
            for (disk, known, seed) in [(&own, &known[0], b), (&fios, &known[1], c)] {
                scope.spawn(move || snapshots_until_dead(disk, seed, round, known));
            }
            // The moment of the kill is what is random here.
            thread::sleep(moment);
            File::create(&trigger).expect("the trigger");
            job.wait().expect("fio ends");
            // It takes the file away, or had written all before.
            if fs::remove_file(&trigger).is_ok() {
                mount.kill9();
            } else {
                mount.wait_gone();
                in_flight += 1;
            }
        });
        mount.remount();
        let image = read_direct(&own.join("disk.img")).expect("the image");
        check_sectors(&image, &mut sectors.lock().expect("sectors"));
        let mut known = known
            .each_ref()
            .map(|known| known.lock().expect("snapshots"));
        for (snapshot, expected) in known.iter().flat_map(|known| known.iter()) {
            match expected {
                Some(expected) => {
                    let found = hash(snapshot).expect("an acknowledged snapshot");
                    assert_eq!(&found, expected, "round {round}: {snapshot:?}");
                    kept += 1;
                }
                None => assert!(!snapshot.exists(), "round {round}: {snapshot:?} is back"),
            }
        }
        // None if it had not begun yet.
        if state_file.exists() {
            let mut verify = fio(&fios.join("disk.img"), fio_seed, &state);
            run(verify.args(["--verify_only", "--verify_state_load=1"]));
            fs::remove_file(&state_file).expect("its state");
            verified += 1;
        }
        // Few enough to look at all of them each time.
        let there = known.iter_mut().flat_map(|known| known.iter_mut());
        for (snapshot, expected) in there.filter(|(_, hash)| hash.is_some()) {
            if random.below(3) > 0 {
                fs::remove_dir(snapshot).expect("rmdir");
                *expected = None;
            }
        }
    }
    assert_sound(mount.point());
    assert!(in_flight > 0, "fio verified nothing that was under way");
    println!(
        "{total} kills, {} writes, {verified} jobs that fio verified, {in_flight} of them under \
         way, {kept} looks at snapshots",
        next.load(Ordering::SeqCst)
    );
}

/// The same with a filesystem on a loop device: files that were synced are
/// there, and the filesystem is whole after its journal's replay, in the
/// live image and in every snapshot.
#[test]
fn a_filesystem_survives_kills() {
    if skipped(&[Need::Loop, Need::Program("mkfs.ext4")]) {
        return;
    }
    let (store, mut random) = (TestStore::new(), seed());
    let mut mount = store.mount();
    let web = ext4_disk(mount.point(), "web", 64 << 20);
    let image = web.join("disk.img");
    let total = rounds(20);
    for round in 0..total {
        let inner = LoopMount::new(&image, "");
        let synced = Mutex::new(BTreeMap::new());
        let dead = AtomicBool::new(false);
        let mut snapshots = Vec::new();
        let moment = Duration::from_micros(300_000 + random.below(700_000));
        thread::scope(|scope| {
            let (inner, synced, dead) = (&inner, &synced, &dead);
            scope.spawn(move || {
                for number in 0u64.. {
                    let path = inner.path(&format!("r{round}-{}", number % 100));
                    // Renamed over, so that the name has old or new content.
                    let temporary = inner.path("new");
                    let written = File::create(&temporary).and_then(|mut file| {
                        file.write_all(&noise(number, 9000))?;
                        file.sync_all()?;
                        fs::rename(&temporary, &path)?;
                        File::open(inner.point())?.sync_all()
                    });
                    if written.is_err() || dead.load(Ordering::SeqCst) {
                        return;
                    }
                    synced.lock().expect("files").insert(number % 100, number);
                }
            });
            for number in 0..2 {
                thread::sleep(moment / 3);
                let before = synced.lock().expect("files").clone();
                let snapshot = web.join(format!(".snapshots/r{round}-{number}"));
                fs::create_dir(&snapshot).expect("a snapshot");
                snapshots.push((snapshot, before));
            }
            thread::sleep(moment / 3);
            mount.kill9();
            dead.store(true, Ordering::SeqCst);
        });
        // The loop device's file is dead: its filesystem cannot be unmounted
        // in peace.
        drop(inner);
        mount.remount();
        let mut to_check = vec![(image.clone(), synced.into_inner().expect("files"))];
        for (number, (snapshot, files)) in snapshots.into_iter().enumerate() {
            let clone = mount.path(&format!("clone{round}-{number}"));
            fs::create_dir(&clone).expect("a disk");
            let clone = clone.join("disk.img");
            run(command("cp", &[])
                .arg(snapshot.join("disk.img"))
                .arg(&clone));
            to_check.push((clone, files));
        }
        for (image, files) in &to_check {
            let inner = LoopMount::new(image, "");
            for (name, number) in files {
                let found =
                    fs::read(inner.path(&format!("r{round}-{name}"))).expect("a synced file");
                // Or one that was renamed over it since.
                let later = (0..3).any(|more| found == noise(number + 100 * more, 9000));
                assert!(later, "round {round}: file {name} is not what was synced");
            }
            inner.unmount();
            run(command("e2fsck", &["-fn"]).arg(image));
        }
    }
    assert_sound(mount.point());
    println!("{total} kills under a mounted filesystem");
}
