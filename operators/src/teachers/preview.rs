//! Requests as they would be sent, without anybody to answer them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use ingrain_engine::{failure::Failure, run::Environment};
use ingrain_llm::{Answer, Client, Memo, Outage, Request, Teacher};
use object_store::{memory::InMemory, path::Path};
use serde_json::Value;
use tokio::sync::Notify;

use super::{MEMO, Teachers, Unasked, memo_failure};

/// Requests that come within this long of each other are shown together; a stage that waits for answers asks no more.
const QUIET: Duration = Duration::from_millis(500);

/// The first requests of a stage.
#[derive(Debug)]
pub struct Preview {
    limit: usize,
    requests: Mutex<Vec<Request>>,
    came: Notify,
    /// The memo of a preview: nothing is in it.
    folder: tempfile::TempDir,
}

/// Makes all clients of `environment` collect requests instead of asking. Must come before the first of them is made.
///
/// # Errors
/// When no temporary folder can be had.
pub fn preview(environment: &Environment, limit: usize) -> Result<Arc<Preview>, Failure> {
    let folder = tempfile::tempdir()?;
    let preview = Arc::new(Preview { limit: limit.max(1), requests: Mutex::default(), came: Notify::new(), folder });
    let kept = preview.clone();
    environment.service(|| Teachers { unasked: Some(Unasked::Preview(kept)), ..Teachers::default() });
    Ok(preview)
}

impl Preview {
    /// Waits until there are as many requests as were wanted, or no more come. `stage` is the stage's run, whose own end
    /// ends the wait, too.
    ///
    /// # Errors
    /// The stage's own failure, if it came before any request.
    pub async fn requests<T>(&self, stage: impl Future<Output = Result<T, Failure>>) -> Result<Vec<Request>, Failure> {
        tokio::pin!(stage);
        loop {
            let count = self.taken().len();
            if count >= self.limit {
                break;
            }
            let came = self.came.notified();
            tokio::select! {
                ended = &mut stage => {
                    if self.taken().is_empty() {
                        ended?;
                    }
                    break;
                }
                () = came => {}
                () = tokio::time::sleep(QUIET), if count > 0 => break,
            }
        }
        let mut requests = self.taken();
        requests.truncate(self.limit);
        Ok(requests)
    }

    fn taken(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A client whose teacher, which has this identity, collects.
    pub(super) async fn client(self: &Arc<Self>, identity: Value) -> Result<Client, Failure> {
        let memo = Memo::open(Arc::new(InMemory::new()), Path::from(MEMO), self.folder.path()).await.map_err(memo_failure)?;
        let collector = Collector { identity, preview: self.clone() };
        Ok(Client::new(Arc::new(collector), memo, self.limit))
    }
}

struct Collector {
    identity: Value,
    preview: Arc<Preview>,
}

#[async_trait]
impl Teacher for Collector {
    fn identity(&self) -> Value {
        self.identity.clone()
    }

    async fn answer(&self, request: &Request, _draw: u32, _attempt: u32) -> Result<Answer, Outage> {
        self.preview.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        self.preview.came.notify_one();
        std::future::pending().await
    }
}
