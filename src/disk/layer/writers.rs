//! Who is changing a layer.

use parking_lot::{Condvar, Mutex};

/// A count of writers that can be waited for.
#[derive(Default)]
pub struct Writers {
    /// A leaf.
    count: Mutex<u64>,
    none: Condvar,
}

impl Writers {
    /// Counts one in. Under the lock of the disk's head, so that nobody comes
    /// after the layer was replaced as the head.
    pub fn enter(&self) {
        *self.count.lock() += 1;
    }

    /// Counts one out.
    pub fn leave(&self) {
        let mut count = self.count.lock();
        *count -= 1;
        if *count == 0 {
            self.none.notify_all();
        }
    }

    /// Whether nobody is in.
    pub fn is_empty(&self) -> bool {
        *self.count.lock() == 0
    }

    /// Waits until nobody is left.
    pub fn wait_for_none(&self) {
        let mut count = self.count.lock();
        while *count > 0 {
            self.none.wait(&mut count);
        }
    }
}
