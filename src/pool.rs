//! A bounded pool of threads for work that a caller must not wait for:
//! disk flushes, fills from packs, changes of metadata (invariant 9).
//!
//! Threads are started when work comes and no thread is idle, up to the
//! pool's limit, and then sleep on a condition variable until the pool goes.
//! Jobs are taken in the order in which they were given. The queue has no
//! bound of its own: whoever gives work bounds it (the kernel by the number
//! of requests it has under way).

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

type Job = Box<dyn FnOnce() + Send>;

/// Threads that run jobs.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    limit: usize,
    /// A leaf: no other lock is taken, and no job is run or dropped, while
    /// it is held.
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    /// Threads that wait for work.
    idle: usize,
    /// No more jobs are taken; threads end when the queue is empty.
    closed: bool,
}

impl Pool {
    /// A pool of at most `threads` threads (at least one), which are called
    /// `name` (the system shows the first 15 bytes). No thread runs yet.
    pub fn new(name: &str, threads: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                limit: threads.max(1),
                state: Mutex::default(),
                work: Condvar::new(),
            }),
        }
    }

    /// Runs `job` on a thread of the pool, some time. Never waits. A job
    /// that panics is logged and takes no thread with it. After
    /// [`Pool::close`] the job is dropped without having run: what it holds
    /// must answer for itself when dropped.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let job: Job = Box::new(job);
        let mut state = self.shared.state.lock();
        if state.closed {
            drop(state);
            tracing::debug!(pool = self.shared.name, "job dropped, the pool is closed");
            return;
        }
        state.jobs.push_back(job);
        if state.jobs.len() <= state.idle {
            self.shared.work.notify_one();
            return;
        }
        if state.threads.len() < self.shared.limit {
            let shared = self.shared.clone();
            let spawned = thread::Builder::new()
                .name(self.shared.name.clone())
                .spawn(move || shared.work());
            match spawned {
                Ok(thread) => state.threads.push(thread),
                // The threads there are do the work; without any, this one.
                Err(error) if state.threads.is_empty() => {
                    let job = state.jobs.pop_back();
                    drop(state);
                    tracing::error!(pool = self.shared.name, %error, "no thread could be started");
                    if let Some(job) = job {
                        self.shared.run_caught(job);
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(pool = self.shared.name, %error, "no further thread could be started");
                }
            }
        }
        // A waiting thread may have been woken for an earlier job and not
        // have run yet; one wake-up too many does no harm.
        self.shared.work.notify_one();
    }

    /// Runs `job` at once in the calling thread, which a panic in it leaves
    /// alone, too.
    pub fn run_here(&self, job: impl FnOnce()) {
        self.shared.run_caught(job);
    }

    /// Takes no more jobs, runs those given so far, and returns when all
    /// threads have ended. Called from one of its own threads it returns
    /// without waiting for that one. Idempotent.
    pub fn close(&self) {
        let threads = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            self.shared.work.notify_all();
            std::mem::take(&mut state.threads)
        };
        for thread in threads {
            if thread.thread().id() != thread::current().id() {
                // A thread catches what its jobs throw.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let job = {
                let mut state = self.state.lock();
                loop {
                    if let Some(job) = state.jobs.pop_front() {
                        break job;
                    }
                    if state.closed {
                        return;
                    }
                    state.idle += 1;
                    self.work.wait(&mut state);
                    state.idle -= 1;
                }
            };
            self.run_caught(job);
        }
    }

    fn run_caught(&self, job: impl FnOnce()) {
        // A job owns what it works on, so nothing half-changed is seen after
        // its panic but through locks, which parking_lot leaves usable.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
            let text = panic
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no message");
            tracing::error!(pool = self.name, panic = text, "a job panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[test]
    fn every_job_given_before_the_end_is_run() {
        let done = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new("test", 3);
        for _ in 0..1000 {
            let done = done.clone();
            pool.run(move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        drop(pool);
        assert_eq!(done.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn as_many_jobs_run_at_once_as_it_has_threads() {
        let pool = Pool::new("test", 4);
        let barrier = Arc::new(Barrier::new(4));
        for _ in 0..4 {
            let barrier = barrier.clone();
            pool.run(move || {
                barrier.wait();
            });
        }
        pool.close();
    }

    #[test]
    fn no_more_threads_run_than_its_limit() {
        let pool = Pool::new("test", 2);
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let (running, most) = (running.clone(), most.clone());
            pool.run(move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        pool.close();
        assert!(most.load(Ordering::SeqCst) <= 2);
    }

    #[test]
    fn a_panic_in_a_job_stops_no_other() {
        let pool = Pool::new("test", 1);
        let (sender, receiver) = mpsc::channel();
        pool.run(|| panic!("on purpose"));
        pool.run(move || sender.send(7).expect("the receiver waits"));
        assert_eq!(receiver.recv(), Ok(7));
    }

    #[test]
    fn a_job_given_after_the_end_is_dropped_and_not_run() {
        let pool = Pool::new("test", 1);
        pool.close();
        let (sender, receiver) = mpsc::channel();
        pool.run(move || sender.send(7).expect("the receiver waits"));
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn a_job_may_close_its_own_pool() {
        let pool = Arc::new(Pool::new("test", 1));
        let (sender, receiver) = mpsc::channel();
        let inner = pool.clone();
        pool.run(move || {
            inner.close();
            sender.send(()).expect("the receiver waits");
        });
        assert_eq!(receiver.recv(), Ok(()));
    }
}
