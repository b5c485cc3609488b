//! Policies: each disk's own, and those that have a name and many disks.

use super::*;
use crate::disk::Engine;
use crate::events::{Event, What};
use crate::manifest::{PolicyRecord, PolicyText, PolicyUse};
use crate::name::PolicyName;
use crate::policy::{self, POLICIES_MAX, Policy};

/// The policy of a disk.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The name of a named one, with `.toml`.
    pub name: Option<String>,
    /// What it says, or why that cannot be told.
    pub policy: Result<Policy, String>,
    /// Slots up to then are none of its.
    pub since_ns: i64,
}

impl InForce {
    /// What to call it.
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(policy::POLICY_FILE)
    }
}

fn read_policy(text: &str) -> Result<Policy, String> {
    policy::parse(text).map_err(|rejection| rejection.to_string())
}

impl Engine {
    fn tell_worker(&self) {
        self.work.raise(|work| work.expire = true);
    }
}

impl Store {
    /// Named policies, by name.
    pub fn policies(&self) -> Vec<PolicyRecord> {
        let mut policies: Vec<PolicyRecord> = self.policies.lock().values().cloned().collect();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        policies
    }

    /// The named policy of that name.
    pub fn policy(&self, name: &str) -> Option<PolicyRecord> {
        let policies = self.policies.lock();
        policies
            .values()
            .find(|policy| policy.name == name)
            .cloned()
    }

    /// The named policy of that number.
    pub fn policy_by_number(&self, number: u32) -> Option<PolicyRecord> {
        let policies = self.policies.lock();
        policies
            .values()
            .find(|policy| policy.number == number)
            .cloned()
    }

    fn policy_named(&self, name: &str) -> Result<PolicyRecord> {
        self.policy(name).ok_or_else(|| Error::Missing {
            what: "policy",
            name: name.to_owned(),
        })
    }

    /// Makes a named policy or changes it for all its disks; durable when
    /// this returns. The text is one that [`policy::parse`] takes.
    pub fn set_named_policy(&self, name: PolicyName, text: PolicyText) -> Result<PolicyRecord> {
        check_policy(name.as_str(), &text.text)?;
        let _naming = self.naming.lock();
        let known = self.policy(name.as_str());
        let mut catalogue = self.catalogue.lock();
        let mut next = catalogue.clone();
        let record = match known {
            Some(known) => PolicyRecord { text, ..known },
            None => {
                self.check_room_for_policy()?;
                let record = PolicyRecord {
                    id: Uuid::new_v4(),
                    number: take_number(&mut next)?,
                    name: name.into(),
                    text,
                };
                next.entries.insert(record.id, EntryKind::Policy);
                record
            }
        };
        self.engine.manifests.replace(&record)?;
        if next.entries.len() != catalogue.entries.len() {
            self.replace_catalogue(&mut catalogue, next)?;
        }
        self.policies.lock().insert(record.id, record.clone());
        let event = Event::new(What::PolicySet).policy(&record.name);
        self.engine.events.note(event);
        self.engine.tell_worker();
        Ok(record)
    }

    /// Whether there may be one more named policy.
    pub(crate) fn check_room_for_policy(&self) -> Result<()> {
        match self.policies.lock().len() {
            count if count >= POLICIES_MAX => Err(Error::Quota {
                what: "named policies".into(),
                limit: POLICIES_MAX as u64,
            }),
            _ => Ok(()),
        }
    }

    /// Names of the disks that a named policy is attached to.
    pub fn disks_of_policy(&self, id: Uuid) -> Vec<String> {
        let has = |disk: &Arc<Disk>| matches!(disk.policy(), Some(PolicyUse::Named { policy, .. }) if policy == id);
        let disks = self.disks();
        disks
            .iter()
            .filter(|disk| has(disk))
            .map(|disk| disk.name())
            .collect()
    }

    /// Removes a named policy that no disk has.
    pub fn remove_policy(&self, name: &str) -> Result<()> {
        let _naming = self.naming.lock();
        let record = self.policy_named(name)?;
        let disks = self.disks_of_policy(record.id);
        if !disks.is_empty() {
            return Err(Error::Busy {
                what: format!("the policy {name}"),
                by: disks
                    .iter()
                    .map(|disk| format!("it is attached to {disk}"))
                    .collect(),
            });
        }
        let mut catalogue = self.catalogue.lock();
        let mut next = catalogue.clone();
        next.entries.remove(&record.id);
        self.replace_catalogue(&mut catalogue, next)?;
        self.policies.lock().remove(&record.id);
        let event = Event::new(What::PolicyEnded).policy(name);
        self.engine.events.note(event);
        self.engine
            .manifests
            .delete(&manifest::entry_key(&record.id, EntryKind::Policy))
    }

    /// Renames a named policy, which stays attached. One of the new name
    /// gets its text instead, unless `no_replace`, and the old one goes.
    pub fn rename_policy(&self, from: &str, to: PolicyName, no_replace: bool) -> Result<()> {
        let naming = self.naming.lock();
        let record = self.policy_named(from)?;
        if from == to.as_str() {
            return Ok(());
        }
        if self.policy(to.as_str()).is_some() {
            drop(naming);
            if no_replace {
                return Err(Error::Exists {
                    what: "policy",
                    name: to.into(),
                });
            }
            let disks = self.disks_of_policy(record.id);
            if !disks.is_empty() {
                return Err(Error::Busy {
                    what: format!("the policy {from}"),
                    by: disks
                        .iter()
                        .map(|disk| format!("it is attached to {disk}"))
                        .collect(),
                });
            }
            self.set_named_policy(to, record.text)?;
            return self.remove_policy(from);
        }
        let renamed = PolicyRecord {
            name: to.into(),
            ..record
        };
        self.engine.manifests.replace(&renamed)?;
        let event = Event::new(What::Renamed).policy(&renamed.name);
        self.engine
            .events
            .note(event.reason(format!("it was {from}")));
        self.policies.lock().insert(renamed.id, renamed);
        Ok(())
    }

    /// Changes owner, mode or time of a named policy's file.
    pub fn set_policy_attributes(
        &self,
        number: u32,
        change: &dyn Fn(&mut PolicyText),
    ) -> Result<()> {
        let _naming = self.naming.lock();
        let mut record = self
            .policy_by_number(number)
            .ok_or_else(|| Error::Missing {
                what: "policy",
                name: format!("number {number}"),
            })?;
        change(&mut record.text);
        self.engine.manifests.replace(&record)?;
        self.policies.lock().insert(record.id, record);
        Ok(())
    }

    /// Gives a disk a policy of its own; durable when this returns.
    pub fn set_policy(&self, disk: &Arc<Disk>, text: PolicyText) -> Result<()> {
        check_policy(&disk.name(), &text.text)?;
        disk.set_policy(Some(PolicyUse::Own(text)))?;
        let event = Event::new(What::PolicySet).disk(disk.name());
        self.engine.events.note(event.policy(policy::POLICY_FILE));
        self.engine.tell_worker();
        Ok(())
    }

    /// Attaches a named policy to a disk; durable when this returns.
    pub fn attach_policy(&self, disk: &Arc<Disk>, name: &str) -> Result<()> {
        // Nobody removes it meanwhile.
        let _naming = self.naming.lock();
        let record = self.policy_named(name)?;
        disk.set_policy(Some(PolicyUse::Named {
            policy: record.id,
            since_ns: time::now_ns(),
        }))?;
        let event = Event::new(What::PolicySet).disk(disk.name()).policy(name);
        self.engine.events.note(event);
        self.engine.tell_worker();
        Ok(())
    }

    /// Ends a disk's policy, or detaches it; its snapshots stay.
    pub fn end_policy(&self, disk: &Arc<Disk>) -> Result<()> {
        let Some(in_force) = self.policy_of(disk) else {
            return Err(Error::Missing {
                what: "policy",
                name: format!("{}/.snapshots/{}", disk.name(), policy::POLICY_FILE),
            });
        };
        disk.set_policy(None)?;
        let event = Event::new(What::PolicyEnded).disk(disk.name());
        self.engine.events.note(event.policy(in_force.label()));
        self.engine.tell_worker();
        Ok(())
    }

    /// The policy of a disk.
    pub fn policy_of(&self, disk: &Disk) -> Option<InForce> {
        Some(match disk.policy()? {
            PolicyUse::Own(text) => InForce {
                name: None,
                policy: read_policy(&text.text),
                since_ns: text.modified_ns,
            },
            PolicyUse::Named { policy, since_ns } => match self.policies.lock().get(&policy) {
                Some(record) => InForce {
                    name: Some(record.name.clone()),
                    policy: read_policy(&record.text.text),
                    since_ns: since_ns.max(record.text.modified_ns),
                },
                None => InForce {
                    name: Some(policy.to_string()),
                    policy: Err("its manifest is lost".into()),
                    since_ns,
                },
            },
        })
    }
}

fn check_policy(of: &str, text: &str) -> Result<()> {
    policy::parse(text)
        .map(drop)
        .map_err(|rejection| Error::InvalidArgument {
            what: format!("the policy of {of}: {rejection}"),
        })
}

/// The next number of a disk, image, policy or group.
pub(crate) fn take_number(catalogue: &mut Catalogue) -> Result<u32> {
    let number = catalogue.next_number;
    if number >= manifest::NUMBER_LIMIT {
        return Err(Error::Quota {
            what: "numbers of disks, images, policies and groups".into(),
            limit: manifest::NUMBER_LIMIT.into(),
        });
    }
    catalogue.next_number += 1;
    Ok(number)
}
