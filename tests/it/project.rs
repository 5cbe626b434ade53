//! A folder with a pipeline in it, and the binary to run there.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// The repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A temporary folder whose store, cache and files are its own.
pub(crate) struct Project {
    folder: tempfile::TempDir,
}

/// What a run said, event by event.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) events: Vec<Value>,
    pub(crate) stderr: String,
}

impl Project {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
        std::fs::write(path, content).expect("written");
    }

    /// The binary in this folder, with a cache of its own and no environment that could change a result.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ingrain"));
        command.args(words).current_dir(self.folder.path()).env("INGRAIN_CACHE", self.path(".cache")).env("NO_COLOR", "1");
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn call(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the binary starts")
    }

    /// `run pipeline.yaml --json` with more options.
    pub(crate) fn run(&self, options: &[&str]) -> Said {
        let words: Vec<&str> = ["run", "pipeline.yaml", "--json"].iter().chain(options).copied().collect();
        Said::of(&self.call(&words))
    }

    /// As [`Self::run`], and it must succeed.
    pub(crate) fn ran(&self, options: &[&str]) -> Said {
        let said = self.run(options);
        assert_eq!(said.code, 0, "{}\n{:?}", said.stderr, said.events);
        said
    }

    /// The rows of an output, as `show` gives them.
    pub(crate) fn rows(&self, output: &str, options: &[&str]) -> Vec<Value> {
        let words: Vec<&str> =
            ["show", "pipeline.yaml", output, "--json", "--limit", "100000"].iter().chain(options).copied().collect();
        let shown = self.call(&words);
        assert!(shown.status.success(), "show {output}: {}", String::from_utf8_lossy(&shown.stderr));
        String::from_utf8_lossy(&shown.stdout).lines().map(|line| serde_json::from_str(line).expect("one row a line")).collect()
    }

    /// The digests of every output of the last run, by stage.
    pub(crate) fn digests(&self, store: &str, pipeline: &str) -> Value {
        let folder = self.path(store).join("runs").join(pipeline);
        let mut records: Vec<PathBuf> =
            std::fs::read_dir(folder).expect("runs").map(|entry| entry.expect("an entry").path()).collect();
        records.sort();
        let record: Value = serde_json::from_slice(&std::fs::read(records.last().expect("a run")).expect("read")).expect("JSON");
        let stages = record["stages"].as_object().expect("stages");
        stages.iter().map(|(name, stage)| (name.clone(), stage["digests"].clone())).collect::<serde_json::Map<_, _>>().into()
    }
}

impl Said {
    /// What a run with `--json` wrote.
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            events: String::from_utf8_lossy(&output.stdout)
                .lines()
                .map(|line| serde_json::from_str(line).expect("one event a line"))
                .collect(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The stages that ran, sorted.
    pub(crate) fn executed(&self) -> Vec<&str> {
        let mut stages: Vec<&str> = self
            .events
            .iter()
            .filter(|event| event["event"] == "finished")
            .map(|event| event["stage"].as_str().expect("a name"))
            .collect();
        stages.sort_unstable();
        stages
    }

    /// What a finished stage reported.
    pub(crate) fn report(&self, stage: &str) -> &Value {
        self.events.iter().find(|event| event["event"] == "finished" && event["stage"] == stage).expect("the stage finished")
    }
}
