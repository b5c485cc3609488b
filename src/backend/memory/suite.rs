//! What every backend has to pass.

use crate::backend::Backend;
use crate::error::{Error, Result};

/// All promises of the trait, on an empty backend.
pub fn all(backend: &dyn Backend) -> Result<()> {
    objects_come_back(backend)?;
    an_appended_object_grows(backend)?;
    a_replacement_needs_the_present_version(backend)
}

fn objects_come_back(backend: &dyn Backend) -> Result<()> {
    assert_eq!(backend.list("packs/")?, []);
    assert_eq!(backend.get("packs/a")?, None);
    assert!(matches!(
        backend.get_range("packs/a", 0, &mut [0; 4]),
        Err(Error::Missing { .. })
    ));
    assert!(matches!(
        backend.settle("packs/a"),
        Err(Error::Missing { .. })
    ));
    backend.delete("packs/a")?;

    backend.put_new("packs/a", b"0123456789")?;
    assert!(matches!(
        backend.put_new("packs/a", b""),
        Err(Error::Exists { .. })
    ));
    let mut buf = [0; 4];
    assert_eq!(backend.get_range("packs/a", 2, &mut buf)?, 4);
    assert_eq!(&buf, b"2345");
    assert_eq!(backend.get_range("packs/a", 8, &mut buf)?, 2);
    assert_eq!(&buf[..2], b"89");
    assert_eq!(backend.get_range("packs/a", 99, &mut buf)?, 0);
    assert_eq!(backend.settle("packs/a")?, 10);

    backend.put_new("packs/b", b"")?;
    backend.put_new("manifests/a", b"m")?;
    let all = [("packs/a".to_owned(), 10), ("packs/b".to_owned(), 0)];
    assert_eq!(backend.list("packs/")?, all);
    assert_eq!(backend.list("packs/b")?, all[1..]);
    assert_eq!(backend.list("")?.len(), 3);

    backend.delete("packs/a")?;
    assert_eq!(backend.get("packs/a")?, None);
    assert!(matches!(
        backend.get_range("packs/a", 0, &mut buf),
        Err(Error::Missing { .. })
    ));
    assert_eq!(backend.list("packs/")?, all[1..]);
    Ok(())
}

fn an_appended_object_grows(backend: &dyn Backend) -> Result<()> {
    let mut appender = backend.append_new("packs/grows", b"")?;
    assert!(backend.append_new("packs/grows", b"").is_err());
    assert!(appender.is_empty());
    appender.append(b"one")?;
    let mut buf = [0; 8];
    assert_eq!(backend.get_range("packs/grows", 0, &mut buf)?, 3);
    appender.sync()?;
    appender.append(b"two")?;
    appender.sync()?;
    assert_eq!(appender.len(), 6);
    assert_eq!(backend.get_range("packs/grows", 0, &mut buf)?, 6);
    assert_eq!(&buf[..6], b"onetwo");
    backend.delete("packs/grows")
}

fn a_replacement_needs_the_present_version(backend: &dyn Backend) -> Result<()> {
    let key = "manifests/disk";
    let conflict = |result| matches!(result, Err(Error::VersionConflict { .. }));
    let one = backend.replace(key, b"one", None)?;
    assert!(conflict(backend.replace(key, b"two", None)));
    let two = backend.replace(key, b"two", Some(&one))?;
    assert!(conflict(backend.replace(key, b"three", Some(&one))));
    assert_eq!(backend.get(key)?, Some((b"two".to_vec(), two.clone())));
    let mut buf = [0; 3];
    assert_eq!(backend.get_range(key, 0, &mut buf)?, 3);
    backend.replace(key, b"333", Some(&two))?;
    assert_eq!(backend.get_range(key, 0, &mut buf)?, 3);
    assert_eq!(&buf, b"333");
    backend.delete(key)?;
    assert!(conflict(backend.replace(key, b"four", Some(&two))));
    Ok(())
}
