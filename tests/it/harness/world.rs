//! A case as it is played: a project, its store, its teacher, and the runs on them.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;

use super::{
    chance::{Chance, FaultLog},
    corpus::{self, SMALL, Variant},
    plan::{Attempt, Case, Moment, step},
    process::{Ended, Processes, locked},
    teacher::{self, Teacher},
};
use crate::{
    cache::walk,
    project::Project,
    s3_server::{Fate, Seen, Server},
};

const BUCKET: &str = "team";
const ROOT: &str = "ingrain/one/";

pub(super) struct World {
    case: Case,
    project: Project,
    pub(super) teacher: Teacher,
    server: Option<Server>,
    processes: Arc<Processes>,
    pub(super) faults: Arc<FaultLog>,
    started: u64,
    /// Whether two runs at once have a cache each, as on two machines.
    two_caches: bool,
}

impl World {
    pub(super) fn new(case: Case, has_budget: bool, two_caches: bool) -> Self {
        let (processes, faults) = (Arc::new(Processes::default()), Arc::new(FaultLog::default()));
        let teacher = Teacher::start(processes.clone(), faults.clone());
        let project = Project::new();
        project.write("pipeline.yaml", corpus::pipeline(&teacher.url(), has_budget));
        let server = case.is_on_s3.then(|| Server::start("Harness", &[BUCKET]));
        Self { case, project, teacher, server, processes, faults, started: 0, two_caches }
    }

    pub(super) fn documents(&self, variant: Variant) {
        corpus::write_documents(&self.project, variant);
    }

    /// Runs once, or twice at once, and waits for the end. What was disturbed isn't any more afterwards.
    pub(super) fn run(&mut self, attempt: &Attempt) -> Vec<Ended> {
        let names: Vec<String> = (0..if attempt.is_race { 2 } else { 1 }).map(|_| self.name()).collect();
        self.teacher.schedule(teacher::Schedule {
            seed: attempt.seed,
            every: attempt.teacher,
            kill: attempt.answer.map(|(request, moment)| (names[0].clone(), request, moment)),
        });
        if let Some(server) = &self.server {
            server.schedule(self.served(attempt, names[0].clone(), server.key_id.clone()));
        }
        let processes: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(place, name)| {
                let mut command = self.command(name, &["run", "pipeline.yaml", "--json"]);
                if place == 1 && self.two_caches {
                    command.env("INGRAIN_CACHE", self.project.path(".cache-of-another-machine"));
                }
                if let Some(faults) = self.ordered(attempt, place) {
                    command.env("INGRAIN_FAULTS", faults);
                }
                self.processes.start(name, &mut command, self.project.path(&format!("{name}.stderr")))
            })
            .collect();
        let ended = processes.iter().map(|process| process.wait()).collect();
        self.teacher.schedule(teacher::Schedule::default());
        if let Some(server) = &self.server {
            server.serve_all();
        }
        self.note_own_faults();
        ended
    }

    /// A name that no text of the case holds: servers are given it as a key.
    fn name(&mut self) -> String {
        self.started += 1;
        format!("run-{:05}-{:02}-of-the-harness", self.case.seed, self.started)
    }

    fn command(&self, name: &str, words: &[&str]) -> Command {
        let store = if self.server.is_some() { format!("s3://{BUCKET}/{ROOT}") } else { "store".to_owned() };
        let words: Vec<&str> = words.iter().copied().chain(["--store", &store]).chain(SMALL).collect();
        let mut command = self.project.command(&words);
        command.env("TEACHER_KEY", name).env("NO_PROXY", "*");
        if let Some(server) = &self.server {
            command
                .env("AWS_ENDPOINT_URL", &server.endpoint)
                .env("AWS_ACCESS_KEY_ID", format!("{}{name}", server.key_id))
                .env("AWS_SECRET_ACCESS_KEY", &server.key)
                .env("AWS_REGION", "us-east-1");
        }
        command
    }

    fn log(&self) -> PathBuf {
        self.project.path("faults.log")
    }

    /// What a run on a local store is to do to itself.
    fn ordered(&self, attempt: &Attempt, place: usize) -> Option<String> {
        if self.server.is_some() {
            return None;
        }
        let mut fields = Vec::new();
        if let Some((step, put, moment)) = attempt.write.filter(|_| place == 0) {
            fields.push(format!("abort={step}:{put}:{}", moment.name()));
        }
        if let Some(every) = attempt.store {
            fields.push(format!("seed={},every={every}", attempt.seed.wrapping_add(place as u64)));
        }
        (!fields.is_empty()).then(|| format!("{},log={}", fields.join(","), self.log().display()))
    }

    /// What the S3 server does with each request.
    fn served(&self, attempt: &Attempt, victim: String, key_id: String) -> impl Fn(&Seen) -> Fate + Send + Sync + 'static {
        let (attempt, processes, faults) = (attempt.clone(), self.processes.clone(), self.faults.clone());
        let (puts, requests) = (Mutex::new(HashMap::<&str, u64>::new()), AtomicU64::new(0));
        move |seen| {
            let step = step(seen.key.strip_prefix(ROOT).unwrap_or(&seen.key));
            let is_put = seen.method == "PUT";
            let is_victim = seen.who.strip_prefix(&key_id) == Some(&victim);
            if let Some((killed_at, put, moment)) = attempt.write.filter(|(at, ..)| *at == step && is_put && is_victim) {
                let mut puts = locked(&puts);
                let count = puts.entry(killed_at).or_default();
                *count += 1;
                if *count == put {
                    faults.add(step, &format!("kill {}", moment.name()));
                    let process = processes.get(&victim).expect("it was started");
                    return match moment {
                        Moment::Before | Moment::Torn => {
                            process.kill();
                            Fate::Drop
                        }
                        Moment::After => Fate::Lose(Box::new(move || process.kill())),
                    };
                }
            }
            let Some(every) = attempt.store else { return Fate::Serve };
            let request = requests.fetch_add(1, Ordering::Relaxed);
            let mut chance = Chance::new(attempt.seed ^ request.wrapping_mul(0xd6e8_feb8_6659_fd93));
            if !chance.one_in(every) {
                return Fate::Serve;
            }
            let delay = Duration::from_millis(5 + chance.below(46));
            let (fault, fate) = match chance.below(4) {
                0 => ("500", Fate::Refuse(500, "InternalError")),
                1 => ("503", Fate::Refuse(503, "SlowDown")),
                2 if is_put => ("lost", Fate::Lose(Box::new(|| {}))),
                2 if seen.method == "GET" && !seen.is_listing => ("truncated", Fate::Truncate),
                _ => ("slow", Fate::Late(delay)),
            };
            faults.add(step, &format!("{fault} {}", if seen.is_listing { "list" } else { &seen.method }));
            fate
        }
    }

    /// Counts the faults that runs wrote down themselves.
    fn note_own_faults(&self) {
        let Ok(text) = std::fs::read_to_string(self.log()) else { return };
        for line in text.lines() {
            let (step, fault) = line.split_once(' ').expect("a step and a fault");
            self.faults.add(step, fault);
        }
        std::fs::remove_file(self.log()).expect("removed");
    }

    /// The objects of the store, by key.
    fn objects(&self) -> BTreeMap<String, Bytes> {
        let Some(server) = &self.server else {
            let root = self.project.path("store");
            let root = root.to_string_lossy();
            return walk(&self.project.path("store"))
                .into_iter()
                .map(|file| {
                    let content = std::fs::read(&file).expect("a file");
                    (file[root.len() + 1..].to_owned(), content.into())
                })
                .collect();
        };
        let root = format!("{BUCKET}/{ROOT}");
        let objects = server.objects().into_iter();
        objects.filter_map(|(name, content)| Some((name.strip_prefix(&root)?.to_owned(), content))).collect()
    }

    /// The digests of every output by stage, of the artifacts that `plan` finds for the pipeline as it stands.
    pub(super) fn digests(&mut self) -> BTreeMap<String, Value> {
        let name = self.name();
        let planned = self.command(&name, &["plan", "pipeline.yaml", "--json"]).output().expect("the binary starts");
        let objects = self.objects();
        let record = |path: &str| objects.get(path).map(|content| serde_json::from_slice::<Value>(content).expect("a record"));
        let digests = |line: &str| {
            let stage: Value = serde_json::from_str(line).expect("a stage a line");
            let key = stage["key"].as_str().filter(|_| stage["status"] == "cached")?;
            let generation = stage["generation"].as_u64().expect("a generation");
            let action = record(&format!("actions/{}/{key}/{generation:06}.json", &key[..2])).expect("an action");
            let manifest = record(action["manifest"].as_str().expect("a path")).expect("a manifest");
            let outputs = manifest["outputs"].as_object().expect("outputs").iter();
            let digests = outputs.map(|(output, table)| (output.clone(), table["digest"].clone())).collect();
            Some((stage["stage"].as_str().expect("a name").to_owned(), Value::Object(digests)))
        };
        String::from_utf8_lossy(&planned.stdout).lines().filter_map(digests).collect()
    }

    /// What was spent by the program's own record, in billionths of a dollar: sums on the store, and on this machine the files of
    /// runs that were killed, which the next run that asks a teacher brings there.
    pub(super) fn spent(&self) -> u64 {
        let objects = self.objects();
        let sums = objects.iter().filter(|(key, _)| key.starts_with("budget/") && key.ends_with(".json"));
        let mut sums: BTreeMap<String, Value> =
            sums.map(|(key, sum)| (name_of_run(key), serde_json::from_slice(sum).expect("a sum"))).collect();
        let taken: Vec<Value> = sums.values().flat_map(|sum| sum["of"].as_array().cloned().unwrap_or_default()).collect();
        sums.retain(|run, _| !taken.contains(&Value::from(run.as_str())));
        let files = walk(&self.project.path(".cache")).into_iter();
        for file in files.filter(|file| file.contains("/budget/") && file.ends_with(".ledger")) {
            let Some(sum) = sums.get_mut(&name_of_run(&file)) else { continue };
            let text = std::fs::read_to_string(&file).expect("a ledger");
            let mut calls: BTreeMap<&str, u64> = BTreeMap::new();
            for line in text.lines().filter(|line| !line.starts_with("boot ")) {
                let words: Vec<&str> = line.split(' ').collect();
                calls.insert(words[1], words[2].parse().expect("an amount"));
            }
            sum["nanodollars"] = calls.values().sum::<u64>().into();
        }
        let amounts = sums.values().flat_map(|sum| [&sum["nanodollars"], &sum["earlier"]]);
        amounts.map(|amount| amount.as_u64().expect("an amount")).sum()
    }
}

fn name_of_run(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.trim_end_matches(".json").trim_end_matches(".ledger").to_owned()
}
