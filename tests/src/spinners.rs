//! Other people's work: CPUs that are never idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;

use crate::cpus;

/// A thread of normal priority on each CPU that this process may use, always running; they end when this
/// is dropped.
#[derive(Debug)]
pub struct Spinners {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Spinners {
    /// Starts them.
    ///
    /// # Errors
    /// When a thread cannot be bound to a CPU.
    pub fn start() -> Result<Self> {
        let mut spinners = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for cpu in cpus::allowed()? {
            let stop = Arc::clone(&spinners.stop);
            let (bound, is_bound) = std::sync::mpsc::channel();
            spinners.threads.push(std::thread::spawn(move || {
                let _ = bound.send(cpus::bind(cpu));
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }));
            is_bound.recv()??;
        }
        Ok(spinners)
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
