//! The file through which the command talks to a mounted store.
//!
//! Whoever opens `.control` has a conversation of its own: one line of JSON
//! is written, then lines of JSON are read until the end of the file:
//!
//! ```text
//! → {"verb":"verify"}
//! ← {"progress":{"doing":"checking chunks","done":3,"total":10}}   any number
//! ← {"finding":{…}}                                                any number
//! ← {"result":{…}}  or  {"error":"…"}                              the last
//! ```
//! The work has a thread of its own, so no request waits for it: a read that
//! comes early is kept and answered when there is something to say.

use crate::error::{Error, Result};
use fuser::ReplyData;
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;

/// The longest request, in bytes.
const LONGEST_REQUEST: usize = 64 * 1024;
/// With more bytes than this unread, the work waits for its reader.
const UNREAD: usize = 1024 * 1024;

/// What the store can be asked while it is mounted.
pub trait Verbs: Send + Sync {
    /// Answers one request: `{"verb": …}` with the verb's own arguments.
    /// `out` takes any number of `{"progress": …}` and `{"finding": …}`,
    /// then one `{"result": …}` or `{"error": …}`. It may wait for the
    /// reader, and drops everything once the reader has gone. Runs in a
    /// thread of its own.
    fn run(&self, request: Value, out: &mut dyn FnMut(Value));
}

/// One opening of the file.
#[derive(Default)]
pub struct Conversation {
    /// A leaf; no reply is sent while it is held.
    state: Mutex<State>,
    /// Something was read, or the reader has gone.
    read: Condvar,
}

#[derive(Default)]
struct State {
    request: Vec<u8>,
    started: bool,
    /// Lines that nobody has read yet.
    unread: VecDeque<u8>,
    /// The last progress, left out when a newer one comes before it is read.
    progress: Option<String>,
    /// The last line was put.
    done: bool,
    /// The file was released.
    gone: bool,
    /// Reads that came before there was anything.
    waiting: VecDeque<(ReplyData, usize)>,
}

impl State {
    /// Up to `size` bytes; None while there are none but some will come.
    fn take(&mut self, size: usize) -> Option<Vec<u8>> {
        if self.unread.is_empty()
            && let Some(line) = self.progress.take()
        {
            self.unread.extend(line.into_bytes());
        }
        if self.unread.is_empty() && !self.done && !self.gone {
            return None;
        }
        let size = size.min(self.unread.len());
        Some(self.unread.drain(..size).collect())
    }
}

impl Conversation {
    /// Takes a part of the request. With the end of its line, the work
    /// begins. Anything after that is [`Error::InvalidArgument`].
    pub fn write(self: &Arc<Self>, data: &[u8], verbs: &Arc<dyn Verbs>) -> Result<()> {
        let invalid = |what: &str| Error::InvalidArgument { what: what.into() };
        let mut state = self.state.lock();
        if state.started {
            return Err(invalid("one request to a conversation; open another one"));
        }
        if state.request.len() + data.len() > LONGEST_REQUEST {
            return Err(invalid("the request is too long"));
        }
        state.request.extend_from_slice(data);
        let Some(end) = state.request.iter().position(|byte| *byte == b'\n') else {
            return Ok(());
        };
        let request: Value = match serde_json::from_slice(&state.request[..end]) {
            Ok(request) => request,
            Err(error) => {
                state.request.clear();
                return Err(invalid(&format!("the request is no line of JSON: {error}")));
            }
        };
        state.started = true;
        drop(state);
        let (this, verbs) = (self.clone(), verbs.clone());
        thread::Builder::new()
            .name("control".into())
            .spawn(move || this.work(request, verbs.as_ref()))
            .map(drop)
            .map_err(Error::io("starting a thread", "for a request"))
    }

    /// Answers a read of at most `size` bytes, now or when there is
    /// something: whole lines or parts of them, nothing at the end.
    pub fn read(&self, size: usize, reply: ReplyData) {
        let answer = {
            let mut state = self.state.lock();
            if !state.started {
                None
            } else if state.waiting.is_empty()
                && let Some(bytes) = state.take(size)
            {
                Some(bytes)
            } else {
                state.waiting.push_back((reply, size));
                return;
            }
        };
        match answer {
            Some(bytes) => {
                self.read.notify_all();
                reply.data(&bytes);
            }
            // Nothing was asked, so nothing would ever come.
            None => reply.error(fuser::Errno::EINVAL),
        }
    }

    /// The reader has gone; what the work still says is dropped.
    pub fn close(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.gone = true;
            state.unread.clear();
            state.progress = None;
            std::mem::take(&mut state.waiting)
        };
        self.read.notify_all();
        for (reply, _) in waiting {
            reply.data(&[]);
        }
    }

    fn work(&self, request: Value, verbs: &dyn Verbs) {
        let mut answered = false;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            verbs.run(request, &mut |line| {
                answered |= line.get("result").is_some() || line.get("error").is_some();
                self.put(&line);
            });
        }));
        if outcome.is_err() {
            tracing::error!("the work for a request panicked");
        }
        if !answered {
            self.put(&json!({"error": "the work ended without an answer; see the log"}));
        }
        let mut state = self.state.lock();
        state.done = true;
        drop(state);
        self.answer();
    }

    fn put(&self, line: &Value) {
        let text = format!("{line}\n");
        let mut state = self.state.lock();
        while state.unread.len() > UNREAD && !state.gone {
            self.read.wait(&mut state);
        }
        if state.gone {
            return;
        }
        if line.get("progress").is_some() {
            state.progress = Some(text);
        } else {
            if let Some(progress) = state.progress.take() {
                state.unread.extend(progress.into_bytes());
            }
            state.unread.extend(text.into_bytes());
        }
        drop(state);
        self.answer();
    }

    /// Answers the reads that wait.
    fn answer(&self) {
        loop {
            let (reply, bytes) = {
                let mut state = self.state.lock();
                let Some(size) = state.waiting.front().map(|(_, size)| *size) else {
                    return;
                };
                let Some(bytes) = state.take(size) else {
                    return;
                };
                let Some((reply, _)) = state.waiting.pop_front() else {
                    return;
                };
                (reply, bytes)
            };
            reply.data(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    impl Verbs for Echo {
        fn run(&self, request: Value, out: &mut dyn FnMut(Value)) {
            out(json!({"progress": {"doing": "echo", "done": 0, "total": 2}}));
            out(json!({"progress": {"doing": "echo", "done": 1, "total": 2}}));
            out(json!({"finding": 1}));
            if request["verb"] != "silent" {
                out(json!({"result": request}));
            }
        }
    }

    /// Runs a request in this thread and returns the lines.
    fn lines(request: Value) -> Vec<Value> {
        let conversation = Conversation::default();
        conversation.state.lock().started = true;
        conversation.work(request, &Echo);
        let mut bytes = Vec::new();
        loop {
            let part = conversation.state.lock().take(10).expect("it is done");
            if part.is_empty() {
                break;
            }
            bytes.extend(part);
        }
        let text = String::from_utf8(bytes).expect("JSON is text");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("every line is JSON"))
            .collect()
    }

    #[test]
    fn findings_and_the_result_come_in_order_and_only_the_newest_progress() {
        let request = json!({"verb": "echo"});
        assert_eq!(
            lines(request.clone()),
            [
                json!({"progress": {"doing": "echo", "done": 1, "total": 2}}),
                json!({"finding": 1}),
                json!({"result": request}),
            ]
        );
    }

    #[test]
    fn work_that_gives_no_answer_is_an_error_and_not_silence() {
        let lines = lines(json!({"verb": "silent"}));
        assert!(lines.last().is_some_and(|line| line["error"].is_string()));
    }

    #[test]
    fn a_request_is_one_line_of_json() {
        let conversation = Arc::new(Conversation::default());
        let verbs: Arc<dyn Verbs> = Arc::new(Echo);
        assert!(conversation.write(b"{\"verb\": ", &verbs).is_ok());
        assert!(conversation.write(b"\"echo\n", &verbs).is_err());
        assert!(conversation.write(&[b' '; 100_000], &verbs).is_err());
        assert!(conversation.write(b"{\"verb\":\"echo\"}\n", &verbs).is_ok());
        assert!(conversation.write(b"{}\n", &verbs).is_err(), "only one");
    }
}
