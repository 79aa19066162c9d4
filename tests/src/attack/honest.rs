//! A caller and a callee that behave, and call all the time: whatever is done
//! to the bridge meanwhile, none of their calls may fail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use blackhole_bus_schema::rpc::{Client, ConnectOptions, Methods};

use super::victim::Victim;
use crate::wait::{HANG, wait_for};

/// Calls that must succeed after an attack: enough to go through every queue.
const AFTERWARDS: u64 = 50;

/// Names of the two; a victim's configuration should have them.
pub const SERVICES: [&str; 2] = ["honest-caller", "honest-callee"];

/// The two, each with a connection of its own, in a thread of their own.
#[derive(Debug)]
pub struct Pair {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Shared {
    fn fail(&self, text: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(text);
    }

    fn failure(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }
}

impl Pair {
    /// Starts them; returns when calls go through.
    ///
    /// # Panics
    /// When none does.
    #[track_caller]
    pub fn start(victim: &Victim) -> Self {
        let options = SERVICES.map(|service| {
            let instance = format!("{service}.1");
            ConnectOptions {
                socket: victim.socket(),
                token: victim.token(&instance),
                instance: instance.parse().expect("the name of an instance"),
            }
        });
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                if let Err(text) = runtime.block_on(run(&shared, options)) {
                    shared.fail(text);
                }
            }
        });
        let pair = Self {
            shared,
            thread: Some(thread),
        };
        pair.wait_for_more(1);
        pair
    }

    /// Waits until so many more calls have succeeded.
    ///
    /// # Panics
    /// When one fails.
    #[track_caller]
    pub fn wait_for_more(&self, calls: u64) {
        let from = self.shared.done.load(Ordering::Relaxed);
        wait_for("the honest clients' calls", || {
            if let Some(failure) = self.shared.failure() {
                panic!("an honest client noticed: {failure}");
            }
            let done = self.shared.done.load(Ordering::Relaxed);
            if done >= from + calls {
                Ok(())
            } else {
                Err(format!("{} of {calls} calls", done - from))
            }
        });
    }

    /// Ends them after a few more calls; how many there were in all.
    ///
    /// # Panics
    /// When one failed, or was answered wrongly.
    #[track_caller]
    pub fn finish(mut self) -> u64 {
        self.wait_for_more(AFTERWARDS);
        self.end();
        if let Some(failure) = self.shared.failure() {
            panic!("an honest client noticed: {failure}");
        }
        let done = self.shared.done.load(Ordering::Relaxed);
        eprintln!("{done} honest calls, all answered rightly");
        done
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.end();
    }
}

async fn run(shared: &Shared, options: [ConnectOptions; 2]) -> Result<(), String> {
    let [caller, callee] = options;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let callee = Client::connect(callee).await.map_err(|e| text(&e))?;
    callee.serve(Methods::new().on("mirror", |request| async move {
        let mut bytes = request.payload.to_vec();
        bytes.reverse();
        Ok(bytes.into())
    }));
    callee.registered(HANG).await.map_err(|e| text(&e))?;
    let caller = Client::connect(caller).await.map_err(|e| text(&e))?;
    caller.registered(HANG).await.map_err(|e| text(&e))?;
    let mut number = 0_u64;
    while !shared.stop.load(Ordering::Relaxed) {
        // Of all sizes up to 4 KiB, each different: an answer to another call is seen.
        let length = 8 + usize::try_from(number % 4096).unwrap_or(0);
        let mut question = number.to_be_bytes().to_vec();
        question.resize(length, number.to_be_bytes()[7]);
        let mut expected = question.clone();
        expected.reverse();
        let answer = caller
            .call("honest-callee", "mirror", question, HANG)
            .await
            .map_err(|status| format!("call {number}: {:?} {status}", status.code))?;
        if answer != expected {
            return Err(format!("call {number} got another one's answer"));
        }
        number += 1;
        shared.done.store(number, Ordering::Relaxed);
    }
    Ok(())
}
