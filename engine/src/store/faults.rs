//! Faults on order, for tests: a store that fails on a schedule, and a process that kills itself at a write.
//!
//! They are injected only where the variable `INGRAIN_FAULTS` is set, which no user is told of. Its value is a list of
//! `name=value`, parted by commas:
//!
//! | name | value |
//! |---|---|
//! | `every` | one request in so many fails, by chance |
//! | `seed` | what chance follows from; with the count of requests so far, nothing else. Default 0 |
//! | `kinds` | of `error` (nothing is done), `lost` (a put that is done, and then an error), `truncate` (a get whose content ends too soon) and `slow` (5 to 50 ms), parted by <code>\|</code>. Default all |
//! | `abort` | `step:n:moment`: the process is killed at the `n`-th put of a step (`part`, `partition`, `manifest`, `action`, ...), `before` it, `after` it, or while it is `torn`: with half of the object in the staging file of a local store |
//! | `log` | a file that gets a line `step fault moment` for each fault, before it happens |
//!
//! Uploads in several pieces and copies pass through.

use std::{
    collections::HashMap,
    fmt,
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};

use crate::failure::Failure;

const VARIABLE: &str = "INGRAIN_FAULTS";

/// What is put on a store, by the folder that it goes to.
const STEPS: [&str; 12] =
    ["part", "partition", "manifest", "action", "damage", "run", "memo", "budget", "lease", "progress", "format", "other"];

/// Another store's objects, some of whose requests fail.
#[derive(Debug)]
pub(super) struct Faulty {
    objects: Arc<dyn ObjectStore>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    schedule: Schedule,
    /// The folder of a local store.
    root: Option<PathBuf>,
    requests: AtomicU64,
    puts: Mutex<HashMap<&'static str, u64>>,
}

/// When what fails.
#[derive(Debug, Clone, Default, PartialEq)]
struct Schedule {
    seed: u64,
    /// 0 for never.
    every: u64,
    kinds: Vec<Kind>,
    abort: Option<Abort>,
    log: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Lost,
    Truncate,
    Slow,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Abort {
    step: &'static str,
    put: u64,
    moment: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    Torn,
    After,
}

impl Schedule {
    fn parse(text: &str) -> Option<Self> {
        let mut schedule = Self { kinds: Kind::ALL.to_vec(), ..Self::default() };
        for field in text.split(',') {
            let (name, value) = field.split_once('=')?;
            match name {
                "seed" => schedule.seed = value.parse().ok()?,
                "every" => schedule.every = value.parse().ok().filter(|every| *every > 0)?,
                "kinds" => schedule.kinds = value.split('|').map(Kind::parse).collect::<Option<_>>()?,
                "abort" => schedule.abort = Some(Abort::parse(value)?),
                "log" => schedule.log = Some(value.into()),
                _ => return None,
            }
        }
        Some(schedule)
    }
}

impl Kind {
    const ALL: [Self; 4] = [Self::Error, Self::Lost, Self::Truncate, Self::Slow];

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Lost => "lost",
            Self::Truncate => "truncate",
            Self::Slow => "slow",
        }
    }
}

impl Abort {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(':');
        let (step, put, moment) = (words.next()?, words.next()?, words.next()?);
        let moment = [Moment::Before, Moment::Torn, Moment::After].into_iter().find(|known| known.name() == moment)?;
        let step = STEPS.into_iter().find(|known| *known == step)?;
        words.next().is_none().then_some(Self { step, put: put.parse().ok().filter(|put| *put > 0)?, moment })
    }
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Torn => "torn",
            Self::After => "after",
        }
    }
}

/// The step that writes an object.
fn step(location: &Path) -> &'static str {
    let mut folders = location.parts();
    let first = folders.next();
    let is_record = location.as_ref().ends_with(".json");
    match first.as_ref().map(AsRef::as_ref) {
        Some("parts") if is_record && folders.count() == 2 => "partition",
        Some("parts") => "part",
        Some("manifests") => "manifest",
        Some("actions") if location.as_ref().ends_with(".damaged") => "damage",
        Some("actions") => "action",
        Some("runs") => "run",
        Some("lineage") => "lineage",
        Some("memo") => "memo",
        Some("budget") => "budget",
        Some("leases") => "lease",
        Some("progress") => "progress",
        Some("format.json") => "format",
        _ => "other",
    }
}

/// The `n`-th number that follows from a seed.
fn drawn(seed: u64, n: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..].copy_from_slice(&n.to_le_bytes());
    let hash = blake3::hash(&bytes);
    hash.as_bytes()[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Faulty {
    /// `objects`, with the faults that the environment asks for, if it does. `root` is the folder of a local store.
    ///
    /// # Errors
    /// When the variable holds no schedule.
    pub(super) fn wrap(
        objects: Arc<dyn ObjectStore>,
        root: Option<PathBuf>,
    ) -> std::result::Result<Arc<dyn ObjectStore>, Failure> {
        let Some(value) = std::env::var_os(VARIABLE) else { return Ok(objects) };
        let schedule = value.to_str().and_then(Schedule::parse);
        let schedule = schedule.ok_or_else(|| Failure::data(format!("`{VARIABLE}` holds no schedule of faults: {value:?}")))?;
        Ok(Arc::new(Self::new(objects, schedule, root)))
    }

    fn new(objects: Arc<dyn ObjectStore>, schedule: Schedule, root: Option<PathBuf>) -> Self {
        Self { objects, shared: Arc::new(Shared { schedule, root, requests: AtomicU64::new(0), puts: Mutex::default() }) }
    }
}

impl Shared {
    /// The fault that the next request meets, if it does: one of those that can happen to it.
    fn fault(&self, possible: &[Kind]) -> Option<(Kind, Duration)> {
        let Schedule { seed, every, kinds, .. } = &self.schedule;
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        let chance = drawn(*seed, request);
        let kinds: Vec<Kind> = kinds.iter().copied().filter(|kind| possible.contains(kind)).collect();
        if *every == 0 || kinds.is_empty() || !chance.is_multiple_of(*every) {
            return None;
        }
        let choice = usize::try_from(chance / every % kinds.len() as u64).ok()?;
        Some((*kinds.get(choice)?, Duration::from_millis(5 + (chance >> 32) % 46)))
    }

    /// Waits, or fails, as the schedule has it for a request that gives or changes nothing on its way.
    async fn pass(&self, step: &str, request: &str) -> Result<()> {
        match self.fault(&[Kind::Error, Kind::Slow]) {
            Some((Kind::Slow, delay)) => {
                self.log(step, Kind::Slow.name(), request);
                tokio::time::sleep(delay).await;
                Ok(())
            }
            Some((kind, _)) => Err(self.failed(step, kind, request)),
            None => Ok(()),
        }
    }

    fn failed(&self, step: &str, kind: Kind, request: &str) -> Error {
        self.log(step, kind.name(), request);
        Error::Generic { store: "faults", source: format!("a fault on order: {step} {} {request}", kind.name()).into() }
    }

    /// A fault that can't be written down still happens: the test that misses it fails.
    fn log(&self, step: &str, fault: &str, moment: &str) {
        let Some(path) = &self.schedule.log else { return };
        if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
            let _ = file.write_all(format!("{step} {fault} {moment}\n").as_bytes());
        }
    }

    /// Where the process is to be killed, if this put of a step is the one.
    fn abort(&self, step: &'static str) -> Option<Moment> {
        let abort = self.schedule.abort.as_ref().filter(|abort| abort.step == step)?;
        let mut puts = self.puts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = puts.entry(step).or_default();
        *count += 1;
        (*count == abort.put).then_some(abort.moment)
    }

    fn kill(&self, step: &str, moment: Moment) -> ! {
        self.log(step, "kill", moment.name());
        // As from outside: nothing in the process gets to run, no handler and no destructor.
        let _ = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
        std::process::abort()
    }

    /// Leaves what a local store has written of an object that it hasn't named yet.
    fn stage(&self, location: &Path, payload: &PutPayload) {
        let Some(root) = &self.root else { return };
        let mut file = location.parts().fold(root.clone(), |folder, part| folder.join(part.as_ref())).into_os_string();
        file.push("#1");
        let file = PathBuf::from(file);
        let content: Vec<u8> = payload.iter().flat_map(|piece| piece.iter().copied()).collect();
        if let Some(folder) = file.parent() {
            let _ = std::fs::create_dir_all(folder);
        }
        let _ = std::fs::write(&file, &content[..content.len() / 2]);
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (shared, step) = (&self.shared, step(location));
        let abort = shared.abort(step);
        match abort {
            Some(Moment::Torn) => {
                shared.stage(location, &payload);
                shared.kill(step, Moment::Torn);
            }
            Some(Moment::Before) => shared.kill(step, Moment::Before),
            Some(Moment::After) | None => {}
        }
        let fault = shared.fault(&[Kind::Error, Kind::Lost, Kind::Slow]);
        match fault {
            Some((Kind::Error, _)) => return Err(shared.failed(step, Kind::Error, "put")),
            Some((Kind::Slow, delay)) => {
                shared.log(step, Kind::Slow.name(), "put");
                tokio::time::sleep(delay).await;
            }
            _ => {}
        }
        let put = self.objects.put_opts(location, payload, options).await?;
        if abort.is_some() {
            shared.kill(step, Moment::After);
        }
        match fault {
            Some((Kind::Lost, _)) => Err(shared.failed(step, Kind::Lost, "put")),
            _ => Ok(put),
        }
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (shared, step) = (&self.shared, step(location));
        let possible: &[Kind] =
            if options.head { &[Kind::Error, Kind::Slow] } else { &[Kind::Error, Kind::Truncate, Kind::Slow] };
        match shared.fault(possible) {
            None => self.objects.get_opts(location, options).await,
            Some((Kind::Slow, delay)) => {
                shared.log(step, Kind::Slow.name(), "get");
                tokio::time::sleep(delay).await;
                self.objects.get_opts(location, options).await
            }
            Some((Kind::Truncate, _)) => {
                let found = self.objects.get_opts(location, options).await?;
                let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
                let content = found.bytes().await?;
                shared.log(step, Kind::Truncate.name(), "get");
                let cut = content.slice(..content.len() / 2);
                let payload = GetResultPayload::Stream(futures::stream::once(std::future::ready(Ok(cut))).boxed());
                Ok(GetResult { payload, meta, range, attributes })
            }
            Some((kind, _)) => Err(shared.failed(step, kind, "get")),
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let shared = self.shared.clone();
        let passed = locations.and_then(move |location| {
            let shared = shared.clone();
            async move { shared.pass(step(&location), "delete").await.map(|()| location) }
        });
        self.objects.delete_stream(passed.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (shared, listed) = (self.shared.clone(), self.objects.list(prefix));
        let folder = prefix.cloned().unwrap_or_default();
        let passed = async move { shared.pass(step(&folder), "list").await.map(|()| listed) };
        futures::stream::once(passed).try_flatten().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (shared, listed) = (self.shared.clone(), self.objects.list_with_offset(prefix, offset));
        let folder = prefix.cloned().unwrap_or_default();
        let passed = async move { shared.pass(step(&folder), "list").await.map(|()| listed) };
        futures::stream::once(passed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let folder = prefix.cloned().unwrap_or_default();
        self.shared.pass(step(&folder), "list").await?;
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use object_store::{ObjectStoreExt, memory::InMemory};

    use super::*;

    #[test]
    fn schedules_are_read_strictly() {
        let schedule = Schedule::parse("seed=7,every=20,kinds=error|slow,abort=action:2:torn,log=/tmp/x").expect("a schedule");
        let abort = Abort { step: "action", put: 2, moment: Moment::Torn };
        let kinds = vec![Kind::Error, Kind::Slow];
        assert_eq!(schedule, Schedule { seed: 7, every: 20, kinds, abort: Some(abort), log: Some("/tmp/x".into()) });
        for wrong in
            ["", "every=0", "every", "seed=x", "kinds=", "kinds=fire", "abort=action:0:after", "abort=act:1:after", "abort=run:1"]
        {
            assert_eq!(Schedule::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn steps_are_told_apart_by_where_they_write() {
        let cases = [
            ("parts/s/r/a-default-0000-x.parquet", "part"),
            ("parts/s/r/a-default/tokenizer.json", "part"),
            ("parts/s/r.json", "partition"),
            ("manifests/d.json", "manifest"),
            ("actions/ab/abc/000000.json", "action"),
            ("actions/ab/abc/000000.damaged", "damage"),
            ("runs/p/1.json", "run"),
            ("memo/1.parquet", "memo"),
            ("budget/p/1.json", "budget"),
            ("progress/abc/000000/step-10", "progress"),
            ("format.json", "format"),
            ("doctor/x", "other"),
        ];
        for (path, expected) in cases {
            assert_eq!(step(&Path::from(path)), expected, "{path}");
        }
    }

    #[tokio::test]
    async fn faults_do_what_their_names_say() {
        let content = Bytes::from_static(b"content");
        let path = Path::from("runs/p/1.json");
        let store = |kind: Kind| {
            let inner = Arc::new(InMemory::new());
            let schedule = Schedule { every: 1, kinds: vec![kind], ..Schedule::default() };
            (inner.clone(), Faulty::new(inner, schedule, None))
        };
        let (inner, faulty) = store(Kind::Error);
        faulty.put(&path, content.clone().into()).await.expect_err("refused");
        inner.head(&path).await.expect_err("not put");
        let (inner, faulty) = store(Kind::Lost);
        faulty.put(&path, content.clone().into()).await.expect_err("lost");
        inner.head(&path).await.expect("put");
        let (inner, faulty) = store(Kind::Truncate);
        inner.put(&path, content.clone().into()).await.expect("put");
        let found = faulty.get(&path).await.expect("found");
        assert_eq!(found.meta.size, 7);
        assert_eq!(found.bytes().await.expect("read"), "con");
    }

    #[tokio::test]
    async fn one_request_in_so_many_fails_and_the_seed_says_which() {
        let run = async |seed| {
            let schedule = Schedule { seed, every: 10, kinds: vec![Kind::Error], ..Schedule::default() };
            let store = Faulty::new(Arc::new(InMemory::new()), schedule, None);
            let mut failed = Vec::new();
            for n in 0..1000 {
                if store.put(&Path::from(format!("memo/{n}")), "x".into()).await.is_err() {
                    failed.push(n);
                }
            }
            failed
        };
        let first = run(1).await;
        assert!((60..150).contains(&first.len()), "{}", first.len());
        assert_eq!(first, run(1).await);
        assert_ne!(first, run(2).await);
    }
}
