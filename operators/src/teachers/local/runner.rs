//! The thread that runs checkpoints on the run's device, one at a time.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use ingrain_engine::failure::Failure;
use ingrain_llm::Outage;
use ingrain_student::{Asked, Checkpoint, ScoreError, Scorer, Tokenizer, WriteError, Written, generate::TOKENS_AT_ONCE};
use tokio::sync::oneshot;

/// A checkpoint that may be loaded.
#[derive(Debug)]
pub(super) struct Source {
    /// Its folder.
    pub(super) folder: PathBuf,
    /// What the folder holds.
    pub(super) digest: String,
    /// The machine's folder, where digests are kept.
    pub(super) cache: PathBuf,
    /// Whether nothing of it is to be asked any more.
    pub(super) stopped: AtomicBool,
}

/// Something to write, and who waits for it.
struct Job {
    source: Arc<Source>,
    asked: Asked,
    reply: oneshot::Sender<Result<Written, Outage>>,
}

enum Message {
    Job(Box<Job>),
    /// The device is needed for something else.
    Vacate(oneshot::Sender<()>),
}

/// Runs checkpoints on a device. A model stays on the thread that loaded it, so there is one, which starts with the first job
/// and ends with this. Jobs of the model that is loaded go first, as many together as fit; then another is loaded in its place.
#[derive(Debug)]
pub(crate) struct Runner {
    device: String,
    thread: Mutex<Option<mpsc::Sender<Message>>>,
}

impl Runner {
    /// A runner on `auto`, `cpu`, `cuda:0`.
    pub(crate) fn new(device: &str) -> Self {
        Self { device: device.to_owned(), thread: Mutex::default() }
    }

    /// Has a checkpoint go on with a prompt.
    pub(super) async fn write(&self, source: Arc<Source>, asked: Asked) -> Result<Written, Outage> {
        let (reply, written) = oneshot::channel();
        let mut job = Message::Job(Box::new(Job { source, asked, reply }));
        {
            let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let jobs = match &*thread {
                    Some(jobs) => jobs,
                    None => thread.insert(start(self.device.clone())?),
                };
                match jobs.send(job) {
                    Ok(()) => break,
                    // The thread broke down over what it was asked before.
                    Err(mpsc::SendError(back)) => job = back,
                }
                *thread = None;
            }
        }
        written.await.unwrap_or_else(|_| Err(Outage::teacher(format!("the model on `{}` broke down", self.device))))
    }

    /// Takes the model that is loaded off the device.
    pub(crate) async fn vacate(&self) {
        let (done, vacated) = oneshot::channel();
        {
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(jobs) = &*thread else { return };
            let _ = jobs.send(Message::Vacate(done));
        }
        // An error means that the thread is gone, and the model with it.
        let _ = vacated.await;
    }
}

fn start(device: String) -> Result<mpsc::Sender<Message>, Outage> {
    let (jobs, arriving) = mpsc::channel();
    std::thread::Builder::new()
        .name("local model".to_owned())
        .spawn(move || run(&device, &arriving))
        .map_err(|error| Outage::teacher(format!("no thread can be had for the model: {error}")))?;
    Ok(jobs)
}

fn run(device: &str, arriving: &mpsc::Receiver<Message>) {
    let mut waiting: VecDeque<Job> = VecDeque::new();
    let mut loaded: Option<Loaded> = None;
    loop {
        let first = if waiting.is_empty() { arriving.recv().map(Some) } else { Ok(None) };
        let Ok(first) = first else { return };
        for message in first.into_iter().chain(arriving.try_iter()) {
            match message {
                Message::Job(job) => waiting.push_back(*job),
                Message::Vacate(done) => {
                    loaded = None;
                    // Who waits for it may have given up.
                    let _ = done.send(());
                }
            }
        }
        let jobs = next(&mut waiting, loaded.as_ref().map(|loaded| loaded.digest.as_str()));
        let Some(source) = jobs.first().map(|job| job.source.clone()) else { continue };
        if loaded.as_ref().is_none_or(|loaded| loaded.digest != source.digest) {
            // Two models at once may not fit.
            drop(loaded.take());
            match Loaded::new(&source, device) {
                Ok(ready) => loaded = Some(ready),
                Err(outage) => {
                    jobs.into_iter().for_each(|job| drop(job.reply.send(Err(outage.clone()))));
                    continue;
                }
            }
        }
        // A device that failed isn't asked again by the same thread: what it holds of the model may be anything.
        if loaded.as_mut().is_some_and(|loaded| !loaded.answer(jobs)) {
            return;
        }
    }
}

/// The jobs that are done together next: those of the loaded model, or else of the first in line, as many as fit, one at least.
/// Those that nobody waits for any more are dropped.
fn next(waiting: &mut VecDeque<Job>, loaded: Option<&str>) -> Vec<Job> {
    waiting.retain(|job| !job.reply.is_closed());
    let is_loaded = |job: &&Job| Some(job.source.digest.as_str()) == loaded;
    let Some(of) = waiting.iter().find(is_loaded).or(waiting.front()).map(|job| job.source.digest.clone()) else {
        return Vec::new();
    };
    let (mut taken, mut left, mut tokens) = (Vec::new(), VecDeque::new(), 0);
    for job in waiting.drain(..) {
        let fits = taken.is_empty() || tokens + job.asked.tokens() <= TOKENS_AT_ONCE;
        if job.source.digest == of && fits {
            tokens += job.asked.tokens();
            taken.push(job);
        } else {
            left.push_back(job);
        }
    }
    *waiting = left;
    taken
}

/// The model on the device.
struct Loaded {
    digest: String,
    scorer: Scorer,
    tokenizer: Tokenizer,
}

impl Loaded {
    fn new(source: &Source, device: &str) -> Result<Self, Outage> {
        let failed = |failure: Failure| Outage::Teacher { message: failure.message, hint: failure.hint };
        if super::folder::digest(&source.folder, &source.cache).map_err(failed)? != source.digest {
            return Err(Outage::Teacher {
                message: format!("the checkpoint in `{}` has changed since the run began", source.folder.display()),
                hint: Some("run again".to_owned()),
            });
        }
        let device = crate::train::device(device).map_err(failed)?;
        let checkpoint = Checkpoint::read(&source.folder).map_err(|error| Outage::teacher(error.to_string()))?;
        let tokenizer = checkpoint.tokenizer().map_err(|error| Outage::teacher(error.to_string()))?;
        let scorer = Scorer::new(&checkpoint.architecture, &*checkpoint.weights, &device);
        let scorer = scorer.map_err(|error| Outage::teacher(error.to_string()))?;
        Ok(Self { digest: source.digest.clone(), scorer, tokenizer })
    }

    /// Answers jobs; says whether the device is still to be asked.
    fn answer(&mut self, jobs: Vec<Job>) -> bool {
        let (stopped, jobs): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.source.stopped.load(Ordering::Acquire));
        for job in stopped {
            let _ = job.reply.send(Err(Outage::teacher("the run is being stopped")));
        }
        let asked: Vec<Asked> = jobs.iter().map(|job| job.asked.clone()).collect();
        let written = self.scorer.write(&self.tokenizer, &asked);
        let failed = matches!(&written, Err(WriteError::Score(ScoreError::Device { .. })));
        let written = written.map_err(outage);
        for (place, job) in jobs.into_iter().enumerate() {
            // Who waits for it may have given up.
            let _ = job.reply.send(match &written {
                Ok(written) => Ok(written[place].clone()),
                Err(outage) => Err(outage.clone()),
            });
        }
        !failed
    }
}

fn outage(error: WriteError) -> Outage {
    Outage::Teacher {
        message: error.to_string(),
        hint: matches!(error, WriteError::Score(ScoreError::Device { .. }))
            .then(|| "if its memory ran out, lower `max_output_tokens`, or choose a smaller model".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use ingrain_student::Generation;

    use super::*;

    #[tokio::test]
    async fn a_thread_that_broke_down_is_started_again() {
        let (gone, _) = mpsc::channel();
        let runner = Runner { device: "cpu".into(), thread: Mutex::new(Some(gone)) };
        runner.vacate().await;
        let folder = tempfile::tempdir().unwrap();
        let source = Source {
            folder: folder.path().join("none"),
            digest: "of another".into(),
            cache: folder.path().to_owned(),
            stopped: AtomicBool::new(false),
        };
        let asked = Asked { prompt: vec![1], how: Generation::greedy(1, vec![]), stop_strings: vec![] };
        let outage = runner.write(Arc::new(source), asked).await.unwrap_err();
        assert!(!outage.to_string().contains("broke down"), "{outage}");
    }
}
