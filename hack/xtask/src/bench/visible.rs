//! When a load step shows in the external metrics API: asks it over and over, as a client would, and remembers
//! when each answer came.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ebpf_scaler_e2e::{metrics::request_rate, unix_micros};
use kube::Client;
use tokio::time::sleep;

/// Finer than what is to be measured.
const INTERVAL: Duration = Duration::from_millis(40);

/// When an answer came, and the rate in it.
type Answer = (u64, f64);

/// Asks until it is dropped.
pub struct Visible {
    answers: Arc<Mutex<Vec<Answer>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Visible {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Visible {
    /// Begins to ask for a Deployment's rate over the shortest window.
    pub fn start(client: &Client, namespace: &'static str, deployment: &'static str) -> Self {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let (client, seen) = (client.clone(), Arc::clone(&answers));
        let task = tokio::spawn(async move {
            loop {
                if let Ok(rate) = request_rate(&client, namespace, deployment, "3s").await {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.push((unix_micros(), rate));
                }
                sleep(INTERVAL).await;
            }
        });
        Self { answers, task }
    }

    /// When an answer first exceeded a rate, not looking at what came before `since`.
    pub fn exceeded(&self, rate: f64, since: u64) -> Option<u64> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut later = answers.iter().filter(|(at, _)| *at >= since);
        later.find(|(_, found)| *found > rate).map(|(at, _)| *at)
    }
}
