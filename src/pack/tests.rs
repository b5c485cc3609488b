use super::*;
use crate::backend::Backend;
use crate::backend::memory::MemoryBackend;
use crate::chunk::{self, Keys, Kind};
use crate::error::Result;

const STORE: Uuid = Uuid::from_u128(1);

fn keys() -> Keys {
    Keys::new(&[9; 32])
}

fn stored(number: u8, len: usize) -> Stored {
    let mut plain = vec![0; len];
    blake3::Hasher::new()
        .update(&[number])
        .finalize_xof()
        .fill(&mut plain);
    let (codec, payload) = chunk::encode(&plain);
    Stored {
        id: keys().id(Kind::Data, &plain),
        kind: Kind::Data,
        codec,
        plain_len: len as u32,
        payload: payload.into_owned(),
    }
}

/// A closed pack of ten records of different lengths.
fn sample(backend: &MemoryBackend) -> Result<(PackName, Vec<Entry>, u64)> {
    let name = PackName::random(5);
    let mut writer = PackWriter::create(backend, name, STORE)?;
    for number in 0..10 {
        writer.append(&stored(number, 1000 + 77 * usize::from(number)))?;
    }
    writer.sync()?;
    let end = writer.len();
    writer.close()?;
    writer.sync()?;
    Ok((name, writer.entries().to_vec(), end))
}

fn contents(backend: &MemoryBackend, name: &PackName) -> Result<Contents> {
    let len = backend.settle(&name.key())?;
    Reader::new(backend, name).contents(STORE, len)
}

/// The pack with a change, on a backend of its own.
fn changed(name: &PackName, bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> MemoryBackend {
    let mut bytes = bytes.to_vec();
    change(&mut bytes);
    let backend = MemoryBackend::new();
    backend.put_new(&name.key(), &bytes).expect("memory writes");
    backend
}

#[test]
fn a_name_has_one_spelling() {
    let name = PackName::random(0x12ab);
    let text = name.to_string();
    assert_eq!(text.len(), 49);
    assert_eq!(text.parse::<PackName>().ok(), Some(name));
    let hyphens = format!("{:016x}-{}", name.epoch, name.uuid);
    for bad in [
        "",
        "-",
        "1-2",
        &text.to_uppercase(),
        &hyphens,
        &text[1..],
        "x.tmp",
    ] {
        assert!(bad.parse::<PackName>().is_err(), "{bad}");
    }
}

#[test]
fn directory_and_scan_say_the_same() -> Result<()> {
    let backend = MemoryBackend::new();
    let (name, entries, end) = sample(&backend)?;
    let found = contents(&backend, &name)?;
    assert!(found.closed && found.findings.is_empty());
    assert_eq!(
        (found.end, found.directory.by_offset()),
        (end, entries.clone())
    );

    let mut visited = Vec::new();
    let scanned = Reader::new(&backend, &name).scan(found.end, |entry, stored| {
        assert!(stored.open(&keys()).is_ok());
        visited.push(*entry);
    })?;
    assert_eq!(visited, entries);
    assert_eq!(
        (scanned.directory, scanned.findings),
        (found.directory, vec![])
    );
    for entry in &entries {
        let read = read_record(&backend, &name, entry).map_err(|error| Error::Damaged {
            what: "record".into(),
            detail: format!("{error:?}"),
        })?;
        assert!(read.open(&keys()).is_ok());
    }
    Ok(())
}

/// Reads the format by its description, sharing nothing with the code above.
#[test]
fn a_separate_reader_sees_what_the_header_of_this_module_says() -> Result<()> {
    let backend = MemoryBackend::new();
    let (name, entries, end) = sample(&backend)?;
    let (bytes, _) = backend.get(&name.key())?.expect("it is there");
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(&bytes[..8], b"SNAPPACK");
    assert_eq!(&bytes[8..16], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&bytes[16..32], STORE.as_bytes());
    assert_eq!(u64_at(32), 5);
    assert_eq!(&bytes[40..56], name.uuid.as_bytes());
    assert_eq!(u32_at(60), crc32fast::hash(&bytes[..60]));

    let mut at = 64;
    for number in 0..10u8 {
        let plain_len = 1000 + 77 * usize::from(number);
        assert_eq!(&bytes[at..at + 4], b"CHNK");
        assert_eq!((bytes[at + 4], bytes[at + 5]), (1, 0));
        assert_eq!((u32_at(at + 8), u32_at(at + 12)), (0, plain_len as u32));
        assert_eq!(u32_at(at + 16), plain_len as u32);
        let payload = &bytes[at + 88..at + 88 + plain_len];
        assert_eq!(&bytes[at + 48..at + 80], keys().id(Kind::Data, payload).0);
        assert_eq!(u32_at(at + 80), crc32fast::hash(payload));
        assert_eq!(u32_at(at + 84), crc32fast::hash(&bytes[at..at + 84]));
        at = (at + 88 + plain_len).div_ceil(64) * 64;
    }
    assert_eq!(at as u64, end);
    assert_eq!(&bytes[at..at + 8], b"PACKDIR\0");
    assert_eq!(u32_at(at + 24), 10);
    let first = entries.iter().min_by_key(|entry| entry.id).expect("ten");
    assert_eq!(&bytes[at + 64..at + 96], first.id.0);
    assert_eq!(u64::from(u32_at(at + 64 + 36)) * 64, first.offset());
    let trailer = bytes.len() - 64;
    assert_eq!(&bytes[trailer..trailer + 8], b"PACKEND\0");
    assert_eq!((u64_at(trailer + 24), u32_at(trailer + 40)), (end, 10));
    let listed = &bytes[at + 64..at + 64 + 480];
    assert_eq!(u32_at(trailer + 44), crc32fast::hash(listed));
    Ok(())
}

#[test]
fn cut_anywhere_it_keeps_every_whole_record() -> Result<()> {
    let backend = MemoryBackend::new();
    let (name, entries, end) = sample(&backend)?;
    let (bytes, _) = backend.get(&name.key())?.expect("it is there");
    for len in (ALIGN as usize..bytes.len())
        .step_by(37)
        .chain([bytes.len() - 1, end as usize])
    {
        let backend = changed(&name, &bytes, |bytes| bytes.truncate(len));
        let found = contents(&backend, &name)?;
        let whole = entries
            .iter()
            .filter(|entry| entry.end() <= len as u64)
            .count();
        assert_eq!(found.directory.entries().len(), whole, "{len}");
        assert!(!found.closed);
        // A crash while it was written may have left just that.
        let torn = found.findings.iter().all(|finding| !finding.is_damage());
        assert!(torn, "{len}: {:?}", found.findings);
    }
    Ok(())
}

#[test]
fn a_flipped_bit_costs_at_most_its_record_and_is_found() -> Result<()> {
    let backend = MemoryBackend::new();
    let (name, entries, end) = sample(&backend)?;
    let (bytes, _) = backend.get(&name.key())?.expect("it is there");
    for at in (0..bytes.len()).step_by(13) {
        let backend = changed(&name, &bytes, |bytes| bytes[at] ^= 0x10);
        let found = contents(&backend, &name)?;
        assert_eq!(found.directory.entries().len(), 10, "{at}");
        let scanned = Reader::new(&backend, &name).scan(end, |_, _| ())?;
        let hit = entries.iter().find(|entry| {
            let used = entry.offset() + 88 + u64::from(entry.stored_len);
            (entry.offset()..used).contains(&(at as u64))
        });
        let left = if hit.is_some() { 9 } else { 10 };
        assert_eq!(scanned.directory.entries().len(), left, "{at}");
        let noticed = !found.findings.is_empty() || !scanned.findings.is_empty();
        let in_padding = at as u64 >= 64 && (at as u64) < end && hit.is_none();
        let in_directory_padding = at as u64 >= end + 64 + 480 && at < bytes.len() - 64;
        assert_eq!(noticed, !in_padding && !in_directory_padding, "{at}");
    }
    Ok(())
}

#[test]
fn another_packs_content_is_noticed() -> Result<()> {
    let backend = MemoryBackend::new();
    let (one, ..) = sample(&backend)?;
    let (two, ..) = sample(&backend)?;
    let (bytes, _) = backend.get(&two.key())?.expect("it is there");
    backend.delete(&one.key())?;
    backend.put_new(&one.key(), &bytes)?;
    let found = contents(&backend, &one)?;
    assert!(found.findings.iter().any(Finding::is_damage));
    let elsewhere = Reader::new(&backend, &two).contents(Uuid::from_u128(2), bytes.len() as u64)?;
    assert!(matches!(
        elsewhere.findings[..],
        [Finding::PackHeader { .. }]
    ));
    Ok(())
}

#[test]
fn a_newer_format_is_refused_as_such() -> Result<()> {
    let backend = MemoryBackend::new();
    let (name, ..) = sample(&backend)?;
    let (bytes, _) = backend.get(&name.key())?.expect("it is there");
    let backend = changed(&name, &bytes, |bytes| {
        bytes[8] = 2;
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(matches!(
        contents(&backend, &name),
        Err(Error::FormatNewer { .. })
    ));
    Ok(())
}

#[test]
fn a_record_that_claims_more_than_a_chunk_may_have_is_no_record() -> Result<()> {
    let backend = MemoryBackend::new();
    let (name, entries, _) = sample(&backend)?;
    let (bytes, _) = backend.get(&name.key())?.expect("it is there");
    let at = entries[3].offset() as usize;
    for (field, value) in [
        (12, u32::MAX),
        (12, (1 << 20) + 1),
        (16, u32::MAX),
        (16, 1 << 20),
    ] {
        let backend = changed(&name, &bytes, |bytes| {
            bytes[at + field..at + field + 4].copy_from_slice(&value.to_le_bytes());
            let crc = crc32fast::hash(&bytes[at..at + 84]);
            bytes[at + 84..at + 88].copy_from_slice(&crc.to_le_bytes());
        });
        let read = read_record(&backend, &name, &entries[3]);
        assert!(matches!(read, Err(ReadError::Stale(_))), "{field} {value}");
        let scanned = Reader::new(&backend, &name).scan(bytes.len() as u64, |_, _| ())?;
        assert_eq!(scanned.directory.entries().len(), 9);
    }
    Ok(())
}

/// A pack has its header from the moment at which it has its name.
#[test]
fn a_pack_without_its_header_is_damaged() -> Result<()> {
    let backend = MemoryBackend::new();
    for bytes in [&[0; 5000][..], &[0; 63], &[]] {
        let name = PackName::random(1);
        backend.put_new(&name.key(), bytes)?;
        let found = contents(&backend, &name)?;
        let damage = |finding: &Finding| matches!(finding, Finding::PackHeader { .. });
        assert!(found.findings.iter().any(damage), "{:?}", found.findings);
    }
    Ok(())
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        noise in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        at in 0usize..14_000,
    ) {
        let backend = MemoryBackend::new();
        let (name, ..) = sample(&backend).expect("memory writes");
        let (bytes, _) = backend.get(&name.key()).expect("reads").expect("there");
        let backend = changed(&name, &bytes, |bytes| {
            let at = at.min(bytes.len());
            let end = bytes.len().min(at + noise.len());
            bytes.splice(at..end, noise.iter().copied());
        });
        contents(&backend, &name).expect("damage is no error");
        Directory::decode(&noise, u64::MAX);
    }
}

/// Invariant 4: what a glance finds is the entry, also where it misses some;
/// what is not there or not sound is not found.
#[test]
fn a_glance_at_a_directory_finds_nearly_every_entry_and_no_other() -> Result<()> {
    const COUNT: u64 = 3000;
    let backend = MemoryBackend::new();
    let name = PackName::random(5);
    let mut writer = PackWriter::create(&backend, name, STORE)?;
    for number in 0..COUNT {
        let payload = number.to_le_bytes().to_vec();
        writer.append(&Stored {
            id: keys().id(Kind::Data, &payload),
            kind: Kind::Data,
            codec: chunk::Codec::Raw,
            plain_len: 8,
            payload,
        })?;
    }
    writer.sync()?;
    let end = writer.len();
    writer.close()?;
    writer.sync()?;
    let len = backend.settle(&name.key())?;
    let directory = writer.directory();
    let mut missed = 0;
    for entry in directory.entries() {
        match Reader::new(&backend, &name).glance(len, COUNT, &entry.id)? {
            Some(seen) => assert_eq!(seen, *entry),
            None => missed += 1,
        }
    }
    // Of three standard deviations: 3 in 1000.
    assert!(missed < COUNT / 50, "{missed} of {COUNT}");
    for number in COUNT..2 * COUNT {
        let id = keys().id(Kind::Data, &number.to_le_bytes());
        assert_eq!(Reader::new(&backend, &name).glance(len, COUNT, &id)?, None);
    }

    let (bytes, _) = backend.get(&name.key())?.expect("it was written");
    let first = directory.entries()[0];
    let at = (end + ALIGN) as usize;
    assert_eq!(bytes[at..at + 32], first.id.0);
    // Id, kind, zeros, and a place beyond the records.
    for (byte, bit) in [(0, 1), (31, 1), (32, 0x40), (34, 1), (39, 0x40)] {
        let changed = changed(&name, &bytes, |bytes| bytes[at + byte] ^= bit);
        assert_eq!(
            Reader::new(&changed, &name).glance(len, COUNT, &first.id)?,
            None
        );
    }
    let short = changed(&name, &bytes, |bytes| bytes.truncate(100));
    assert_eq!(
        Reader::new(&short, &name).glance(len, COUNT, &first.id)?,
        None
    );
    assert_eq!(
        Reader::new(&backend, &name).glance(100, COUNT, &first.id)?,
        None
    );
    Ok(())
}
