//! Runs of the real binary that others may kill.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use serde_json::Value;

/// A run that takes longer stands still.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run of the binary.
pub(super) struct Process {
    child: Mutex<Child>,
    stdout: Mutex<Option<ChildStdout>>,
    stderr: PathBuf,
    killed: Mutex<Option<Instant>>,
}

/// How a run ended.
pub(super) struct Ended {
    /// None if it was killed.
    pub(super) code: Option<i32>,
    pub(super) events: Vec<Value>,
    pub(super) stderr: String,
    /// Whether it had to be killed because it came to no end.
    pub(super) stood_still: bool,
}

impl Process {
    /// kill -9. One that has ended stays as it ended.
    pub(super) fn kill(&self) {
        let mut child = locked(&self.child);
        if let Ok(None) = child.try_wait() {
            child.kill().expect("our own child");
            locked(&self.killed).get_or_insert_with(Instant::now);
        }
    }

    /// When it was killed, if it was.
    pub(super) fn killed(&self) -> Option<Instant> {
        *locked(&self.killed)
    }

    /// Waits for its end.
    pub(super) fn wait(&self) -> Ended {
        let mut stdout = locked(&self.stdout).take().expect("waited for once");
        let (done, ended) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.read_to_end(&mut text);
            let _ = done.send(());
            text
        });
        // Whoever has the pipe lives; a kill needs the child meanwhile.
        let stood_still = ended.recv_timeout(PATIENCE).is_err();
        if stood_still {
            self.kill();
        }
        let text = reader.join().expect("no panic");
        let status = locked(&self.child).wait().expect("our own child");
        if status.signal().is_some() {
            locked(&self.killed).get_or_insert_with(Instant::now);
        }
        // The last line of a killed run may be half a line.
        let events = String::from_utf8_lossy(&text).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let stderr = std::fs::read(&self.stderr).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        Ended { code: status.code(), events, stderr, stood_still }
    }
}

impl Ended {
    /// The stages that were committed.
    pub(super) fn executed(&self) -> usize {
        self.events.iter().filter(|event| event["event"] == "finished").count()
    }

    /// Whether it says of itself that it has a mistake.
    pub(super) fn has_bug(&self) -> bool {
        let is_bug = |event: &Value| event["failure"]["fault"] == "bug";
        self.stderr.contains("panicked") || self.events.iter().any(is_bug)
    }
}

/// The runs of a case, by the name that each gives to servers.
#[derive(Default)]
pub(super) struct Processes(Mutex<BTreeMap<String, Arc<Process>>>);

impl Processes {
    /// Starts a run called `name`; its stderr goes to a file.
    pub(super) fn start(&self, name: &str, command: &mut Command, stderr: PathBuf) -> Arc<Process> {
        // Held until the run is known: a server may hear of it at once.
        let mut all = locked(&self.0);
        let file = File::create(&stderr).expect("a file");
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().expect("the binary starts");
        let stdout = Mutex::new(child.stdout.take());
        let process = Arc::new(Process { child: Mutex::new(child), stdout, stderr, killed: Mutex::default() });
        all.insert(name.to_owned(), process.clone());
        process
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Process>> {
        locked(&self.0).get(name).cloned()
    }
}
