//! Images: links to snapshots, and imports.

use super::*;
use crate::disk::layer::BLOCK;

impl Store {
    /// All images, by name.
    pub fn images(&self) -> Vec<Image> {
        let mut images: Vec<Image> = self
            .all_disks()
            .into_iter()
            .filter(|disk| disk.is_import())
            .map(|disk| Image::Import {
                name: disk.name(),
                disk,
            })
            .collect();
        let links: Vec<LinkRecord> = self.engine.links.lock().values().cloned().collect();
        images.extend(links.into_iter().filter_map(|link| self.linked(link)));
        images.sort_by(|a, b| a.name().cmp(b.name()));
        images
    }

    fn linked(&self, link: LinkRecord) -> Option<Image> {
        let disk = self.disk_by_id(link.disk)?;
        let snapshot = disk
            .list_snapshots()
            .into_iter()
            .find(|snapshot| snapshot.id == link.snapshot)?;
        Some(Image::Link {
            name: link.name,
            disk,
            snapshot,
        })
    }

    /// The image of that name.
    pub fn image(&self, name: &str) -> Option<Image> {
        let link = self.engine.links.lock().get(name).cloned();
        if let Some(link) = link {
            return self.linked(link);
        }
        let disks = self.disks.read();
        disks
            .values()
            .find(|disk| disk.is_import() && disk.name() == name)
            .map(|disk| Image::Import {
                name: name.to_owned(),
                disk: disk.clone(),
            })
    }

    fn find_image(&self, name: &str) -> Result<Image> {
        self.image(name).ok_or_else(|| Error::Missing {
            what: "image",
            name: name.to_owned(),
        })
    }

    fn find_link(&self, name: &str) -> Result<LinkRecord> {
        let links = self.engine.links.lock();
        links.get(name).cloned().ok_or_else(|| Error::Missing {
            what: "image",
            name: name.to_owned(),
        })
    }

    fn check_new_image(&self, name: &ImageName) -> Result<()> {
        match self.image(name.as_str()) {
            None => Ok(()),
            Some(_) => Err(Error::Exists {
                what: "image",
                name: name.to_string(),
            }),
        }
    }

    /// Makes an image that is a snapshot's image under another name; the
    /// snapshot cannot be deleted before it. Durable when this returns.
    pub fn link_image(&self, disk: &Arc<Disk>, snapshot: &str, name: ImageName) -> Result<()> {
        self.engine.check_open()?;
        let _naming = self.naming.lock();
        self.check_new_image(&name)?;
        // Nobody deletes the snapshot meanwhile.
        let meta = disk.lock_meta();
        let snapshot = disk.find(snapshot)?;
        let mut catalogue = self.catalogue.lock();
        let link = LinkRecord {
            id: Uuid::new_v4(),
            name: name.clone().into(),
            disk: disk.id(),
            snapshot: snapshot.id,
            created_ns: time::now_ns(),
        };
        self.engine.manifests.replace(&link)?;
        let mut next = catalogue.clone();
        next.entries.insert(link.id, EntryKind::Link);
        self.replace_catalogue(&mut catalogue, next)?;
        let event = Event::new(What::ImageMade).image(name.as_str());
        let event = event.disk(disk.name()).snapshot(snapshot.name());
        self.engine.events.note(event);
        self.engine.links.lock().insert(name.into(), link);
        snapshot.link_count().fetch_add(1, Ordering::SeqCst);
        disk.note_changed(&meta, &snapshot);
        Ok(())
    }

    /// Makes an image to be written; it becomes read-only when its writers
    /// are gone.
    pub fn create_image(&self, name: ImageName, owner: Owner) -> Result<Arc<Disk>> {
        self.engine.capacity.check_write(BLOCK)?;
        let disk = {
            let _naming = self.naming.lock();
            self.check_new_image(&name)?;
            let mut catalogue = self.catalogue.lock();
            self.add_disk(&mut catalogue, Role::Image, name.into(), owner)?
        };
        if let Err(error) = disk.create_image(owner) {
            let _meta = disk.lock_meta();
            let mut catalogue = self.catalogue.lock();
            self.forget_disk(&mut catalogue, &disk)?;
            return Err(error);
        }
        let event = Event::new(What::ImageMade).image(disk.name());
        self.engine.events.note(event);
        Ok(disk)
    }

    /// After recovery: a crash may have come between the entry of an image
    /// and its first manifest with something in it. It was not acknowledged,
    /// and its name would be in the way.
    pub(crate) fn forget_unmade_images(&self) {
        for disk in self.all_disks() {
            let is_made = disk.image_writable() || !disk.list_snapshots().is_empty();
            if !disk.is_import() || is_made {
                continue;
            }
            let mut catalogue = self.catalogue.lock();
            if let Err(error) = self.forget_disk(&mut catalogue, &disk) {
                tracing::warn!("image {}, which was never made: {error}", disk.name());
            }
        }
    }

    /// Removes an image. An imported one must not be open.
    pub fn remove_image(&self, name: &str) -> Result<()> {
        self.engine.sync_grafts()?;
        let _naming = self.naming.lock();
        self.remove_image_named(name)
    }

    /// Removes an image; from then on its space is won back.
    fn remove_image_named(&self, name: &str) -> Result<()> {
        self.forget_image(name)?;
        let event = Event::new(What::ImageRemoved).image(name);
        self.engine.events.note(event);
        self.engine.work.raise(|work| {
            work.seal = true;
            work.collect = true;
        });
        Ok(())
    }

    fn forget_image(&self, name: &str) -> Result<()> {
        match self.find_image(name)? {
            Image::Link { disk, snapshot, .. } => {
                let meta = disk.lock_meta();
                let mut catalogue = self.catalogue.lock();
                let link = self.find_link(name)?;
                let mut next = catalogue.clone();
                next.entries.remove(&link.id);
                self.replace_catalogue(&mut catalogue, next)?;
                self.engine.links.lock().remove(name);
                snapshot.link_count().fetch_sub(1, Ordering::SeqCst);
                disk.note_changed(&meta, &snapshot);
                disk.let_go_of(&snapshot);
                self.engine
                    .manifests
                    .delete(&manifest::entry_key(&link.id, EntryKind::Link))
            }
            Image::Import { disk, .. } => {
                let _closed = disk.keep_closed()?;
                // What was copied from it until it was closed.
                self.engine.sync_grafts()?;
                let _meta = disk.lock_meta();
                let mut catalogue = self.catalogue.lock();
                self.forget_disk(&mut catalogue, &disk)
            }
        }
    }

    /// Renames an image; one of the new name is replaced unless
    /// `no_replace`.
    pub fn rename_image(&self, from: &str, to: ImageName, no_replace: bool) -> Result<()> {
        if self.image(to.as_str()).is_some() {
            // As before any other removal.
            self.engine.sync_grafts()?;
        }
        let _naming = self.naming.lock();
        let image = self.find_image(from)?;
        if from == to.as_str() {
            return Ok(());
        }
        if self.image(to.as_str()).is_some() {
            if no_replace {
                return Err(Error::Exists {
                    what: "image",
                    name: to.into(),
                });
            }
            // Two manifests change: a crash in between leaves the one of the
            // old name only, never two of the new one.
            self.remove_image_named(to.as_str())?;
        }
        match image {
            Image::Import { disk, .. } => disk.set_name(to.into()),
            Image::Link { disk, snapshot, .. } => {
                let meta = disk.lock_meta();
                let mut link = self.find_link(from)?;
                link.name = to.as_str().to_owned();
                self.engine.manifests.replace(&link)?;
                {
                    let mut links = self.engine.links.lock();
                    links.remove(from);
                    links.insert(to.into(), link);
                }
                disk.note_changed(&meta, &snapshot);
                Ok(())
            }
        }
    }
}
