//! Teachers for the stages of a run: one client per model, one memo for all of them.

pub(crate) mod embedder;
mod estimate;
mod forget;
mod local;
mod preview;
pub(crate) mod prompt;

use std::{
    collections::BTreeMap,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use arrow::array::{AsArray, RecordBatch, StringArray};
use async_trait::async_trait;
use ingrain_engine::{
    failure::{Failure, Fault},
    operator::{Cost, Price},
    run::{Counters, Environment, Service, Spent},
    store::Holder,
};
use ingrain_llm::{
    Answer, Budget, BudgetError, Client, Key, Memo, MemoError, ModelConfig, Nanodollars, Outage, Outcome, Provider, Reject,
    Teacher, Usage,
};
use object_store::path::Path;
use serde_json::Value;
use tokio::sync::OnceCell;

pub use self::{
    estimate::{Estimate, Estimates, estimates},
    forget::{Answers, forget},
    preview::{Preview, preview},
};
pub use ingrain_llm::Request;

/// Where on the store the answers lie.
const MEMO: &str = "memo";
/// How long the end of a run waits for answers that are on their way: longer than most take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where on the store it stands what pipelines spent.
const BUDGET: &str = "budget";

/// JSON Schema of an entry under `models:`.
pub fn model_schema() -> schemars::Schema {
    schemars::generate::SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<ModelConfig>()
}

/// An entry with the paths in it made those of files beside the pipeline file, which lies in `folder`.
pub fn model_beside(entry: &Value, folder: &FilePath) -> Value {
    let mut entry = entry.clone();
    if let Some(checkpoint) = entry.pointer_mut("/local/checkpoint")
        && let Some(path) = checkpoint.as_str()
    {
        *checkpoint = folder.join(path).to_string_lossy().into_owned().into();
    }
    entry
}

/// Whether an entry describes a model that can be asked; if not, what is wrong with it. Reads no secret and no weights; of a local
/// checkpoint it looks whether it is there.
pub fn model_ready(entry: &Value) -> Result<(), String> {
    let model = serde_json::from_value::<ModelConfig>(entry.clone()).map_err(|error| error.to_string())?;
    match &model.provider {
        Provider::Local(local) => local::check(local),
        Provider::Offline(_) | Provider::OpenAi(_) => Ok(()),
    }
}

/// What of a model's entry enters stage keys: its identity, and its context, which decides what is rejected unsent. An entry that
/// doesn't describe a model is its own identity: it can't be asked. Digests of large files are kept under `cache`.
///
/// # Errors
/// When a local checkpoint can't be read.
pub fn model_identity(entry: &Value, cache: &FilePath) -> Result<Value, Failure> {
    let Ok(model) = serde_json::from_value::<ModelConfig>(entry.clone()) else { return Ok(entry.clone()) };
    let mut identity = identity(&model, cache)?;
    if let Provider::OpenAi(openai) = &model.provider
        && let Some(context) = openai.context
    {
        identity["context"] = context.0.into();
    }
    Ok(identity)
}

fn identity(model: &ModelConfig, cache: &FilePath) -> Result<Value, Failure> {
    match &model.provider {
        Provider::Local(local) => local::identity(local, cache),
        Provider::Offline(_) | Provider::OpenAi(_) => model.identity().ok_or_else(|| Failure::bug("a model without an identity")),
    }
}

/// Whether a model with this entry answers on the run's device.
pub fn model_on_device(entry: &Value) -> bool {
    let model = serde_json::from_value::<ModelConfig>(entry.clone());
    model.is_ok_and(|model| matches!(model.provider, Provider::Local(_)))
}

/// What asking a model with this entry costs.
pub fn model_cost(entry: &Value) -> Cost {
    match serde_json::from_value::<ModelConfig>(entry.clone()) {
        Ok(ModelConfig { price: Some(price), .. }) => Cost::Known(Price { input: price.input, output: price.output }),
        Ok(ModelConfig { provider: Provider::Offline(_) | Provider::Local(_), .. }) => Cost::Free,
        _ => Cost::Unknown,
    }
}

/// The client of the model called `model`, made on first use and shared by all stages of the run.
///
/// # Errors
/// When the model isn't described, and when the memo can't be opened.
pub async fn client(environment: &Environment, model: &str) -> Result<Arc<Client>, Failure> {
    let teachers = environment.service(Teachers::default);
    let mut clients = teachers.clients.lock().await;
    if let Some(client) = clients.get(model) {
        return Ok(client.clone());
    }
    let config = config(environment, model)?;
    let client = match &teachers.unasked {
        Some(Unasked::Preview(preview)) => preview.client(identity(&config, &environment.cache)?).await?,
        Some(Unasked::Estimates(estimates)) => {
            let teacher = teachers.connect(environment, &config, None)?;
            estimates.client(environment, teacher, config.max_in_flight).await?
        }
        None => {
            let memo = teachers.memo.get_or_try_init(|| open(environment)).await?;
            let budget = match environment.budget {
                Some(usd) => Some(teachers.budget.get_or_try_init(|| open_budget(environment, usd)).await?.clone()),
                None => None,
            };
            let teacher = teachers.connect(environment, &config, budget)?;
            Client::new(teacher, memo.clone(), config.max_in_flight).retrying(environment.retry_rejects)
        }
    };
    let client = Arc::new(client);
    clients.insert(model.to_owned(), client.clone());
    Ok(client)
}

/// How many requests to the model called `model` may be in flight at once, over all stages.
///
/// # Errors
/// When the model isn't described.
pub fn max_in_flight(environment: &Environment, model: &str) -> Result<usize, Failure> {
    Ok(config(environment, model)?.max_in_flight.max(1))
}

/// How many rows of a partition may be under way at once when the model called `model` is asked about them: many more
/// than requests may be in flight, because rows are written in their order. A row whose answer takes eight times as long as
/// those of others holds none of them up.
///
/// # Errors
/// When the model isn't described.
pub fn window(environment: &Environment, model: &str) -> Result<usize, Failure> {
    Ok(config(environment, model)?.max_in_flight.saturating_mul(8).clamp(64, 4096))
}

fn config(environment: &Environment, model: &str) -> Result<ModelConfig, Failure> {
    let entry = environment.models.get(model).ok_or_else(|| Failure::bug(format!("no model is called `{model}`")))?;
    serde_json::from_value(entry.clone()).map_err(|error| Failure::data(format!("model `{model}`: {error}")))
}

async fn open(environment: &Environment) -> Result<Memo, Failure> {
    let store = &environment.store;
    Memo::open(store.objects().clone(), Path::from(MEMO), &local_folder(environment, MEMO)).await.map_err(memo_failure)
}

async fn open_budget(environment: &Environment, usd: f64) -> Result<Arc<Budget>, Failure> {
    let mut holder = String::new();
    let mut wait = |other: &Holder| {
        holder.clone_from(&other.name);
        !other.is_alive
    };
    // It isn't waited for: who holds the budget may wait for a stage that this run is at work on.
    if !environment.lease(&format!("{BUDGET}-{}", environment.pipeline), &mut wait).await? {
        return Err(Failure::external(format!("another run of this pipeline holds its budget ({holder})"))
            .hint("wait for it to end: one run at a time spends from a budget"));
    }
    let prefix = Path::from_iter([BUDGET, &environment.pipeline]);
    let folder = local_folder(environment, BUDGET).join(&environment.pipeline);
    let budget = Budget::open(environment.store.objects().clone(), prefix, &folder, Nanodollars::of_dollars(usd)).await;
    Ok(Arc::new(budget.map_err(budget_failure)?))
}

/// The folder of what this machine keeps of one kind for the run's store.
fn local_folder(environment: &Environment, kind: &str) -> PathBuf {
    let store = &environment.store;
    let location = match store.local_path(&Path::from("")) {
        Some(folder) => folder.to_string_lossy().into_owned(),
        None => store.location().to_owned(),
    };
    environment.cache.join(kind).join(blake3::hash(location.as_bytes()).to_hex().as_str())
}

/// What a run's stages share.
#[derive(Default)]
struct Teachers {
    memo: OnceCell<Memo>,
    budget: OnceCell<Arc<Budget>>,
    clients: tokio::sync::Mutex<BTreeMap<String, Arc<Client>>>,
    /// What runs local checkpoints.
    runner: OnceLock<Arc<local::Runner>>,
    /// Where requests go that nobody is to answer.
    unasked: Option<Unasked>,
}

/// What requests are made for but to be answered.
enum Unasked {
    /// To be shown.
    Preview(Arc<Preview>),
    /// To be counted.
    Estimates(Arc<Estimates>),
}

impl Teachers {
    /// The teacher that an entry describes.
    fn connect(
        &self,
        environment: &Environment,
        config: &ModelConfig,
        budget: Option<Arc<Budget>>,
    ) -> Result<Arc<dyn Teacher>, Failure> {
        if let Provider::Local(local) = &config.provider {
            let runner = self.runner.get_or_init(|| Arc::new(local::Runner::new(&environment.device)));
            return Ok(Arc::new(local::Local::new(local, &environment.cache, runner.clone())?));
        }
        config.connect(budget).ok_or_else(|| Failure::bug("a model that nobody runs"))
    }

    async fn settle(&self) -> Result<(), Failure> {
        match self.budget.get() {
            Some(budget) => budget.settle().await.map_err(budget_failure),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Service for Teachers {
    async fn sync(&self) -> Result<(), Failure> {
        match self.memo.get() {
            Some(memo) => memo.sync().await.map_err(memo_failure),
            None => Ok(()),
        }
    }

    async fn refresh(&self) -> Result<(), Failure> {
        match self.memo.get() {
            Some(memo) => memo.refresh().await.map_err(memo_failure),
            None => Ok(()),
        }
    }

    async fn vacate(&self) {
        if let Some(runner) = self.runner.get() {
            runner.vacate().await;
        }
    }

    async fn close(&self) -> Result<(), Failure> {
        let clients: Vec<Arc<Client>> = self.clients.lock().await.values().cloned().collect();
        // What was sent is paid for.
        futures::future::join_all(clients.iter().map(|client| client.settle(PATIENCE))).await;
        let uploaded = self.settle().await;
        match self.memo.get() {
            Some(memo) => close(memo).await.and(uploaded),
            None => uploaded,
        }
    }
}

/// Uploads what a memo holds, and tidies up on the store. If that fails, only later runs have more to do.
async fn close(memo: &Memo) -> Result<(), Failure> {
    memo.flush().await.map_err(memo_failure)?;
    if let Err(error) = memo.compact().await {
        tracing::warn!(%error, "small segments of answers aren't merged for now");
    }
    Ok(())
}

fn budget_failure(error: BudgetError) -> Failure {
    match error {
        BudgetError::Spent { .. } => Failure { fault: Fault::Budget, ..Failure::external(error.to_string()) }
            .hint("every answer so far is kept: raise the budget and run again, and it goes on from there"),
        BudgetError::TooSmall { .. } => Failure { fault: Fault::Budget, ..Failure::external(error.to_string()) }
            .hint("raise the budget, or lower `max_output_tokens`"),
        BudgetError::Record { .. } => Failure::external(error.to_string())
            .hint("no call is made whose cost can't be written down, and no sum is guessed: mend that, or delete the file to forget what one run spent"),
    }
}

fn memo_failure(error: MemoError) -> Failure {
    let hint = match &error {
        MemoError::Local { .. } => {
            "make room there, or allow writing; what was answered before is kept, and the next run goes on from it"
        }
        MemoError::Store { .. } => {
            "see that the store can be reached and written; answers that didn't get there lie in the local log, and the next run uploads them"
        }
    };
    Failure::external(error.to_string()).hint(hint)
}

/// A teacher that didn't answer fails the stage; what it said so far is kept.
pub(crate) fn outage(outage: Outage) -> Failure {
    match outage {
        Outage::Teacher { message, hint } => Failure::external(message).hint(match hint {
            Some(hint) => format!("{hint}; every answer so far is kept, and the next run goes on from there"),
            None => {
                "see that the teacher can be reached; every answer so far is kept, and the next run goes on from there".into()
            }
        }),
        Outage::Memo(error) => memo_failure(error),
        Outage::Budget(error) => budget_failure(error),
        Outage::Unasked => Failure::bug("a request that was to be counted only"),
    }
}

/// What a request is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    /// The document that it is about.
    pub(crate) document: &'a str,
    /// Rows that are shown with it, by id.
    pub(crate) shown: &'a [&'a str],
    /// Which of several independent answers.
    pub(crate) draw: u32,
    /// The stage's `refresh`.
    pub(crate) refresh: Option<&'a str>,
    /// How many attempts may be made.
    pub(crate) attempts: u32,
}

/// Asks for an answer to `request`, as [`Client::ask`] does, and counts calls, tokens and remembered answers for the stage,
/// and for the document that the request is about.
///
/// # Errors
/// When the teacher or the memo is out.
pub(crate) async fn ask<T>(
    client: &Client,
    counters: &Counters,
    request: &Request,
    about: About<'_>,
    accept: impl Fn(&Answer) -> Result<T, Reject>,
) -> Result<Outcome<T>, Failure> {
    let About { document, shown, draw, refresh, attempts } = about;
    let client = client.about(std::iter::once(document).chain(shown.iter().copied()));
    let key = Key::attempts(request, &client.teacher().asked(request), draw, refresh);
    let remembered = client.remembered(key, attempts);
    // The client goes through what is remembered first: all that is seen after that is new.
    let seen: Mutex<Vec<Option<Usage>>> = Mutex::default();
    let asked = client
        .ask(request, draw, refresh, attempts, |answer| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(answer.usage);
            accept(answer)
        })
        .await;
    let mut new = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let tokens = |of: fn(&Usage) -> u64| new.iter().flatten().map(of).sum();
    let (input_tokens, output_tokens) = (tokens(|usage| usage.input_tokens), tokens(|usage| usage.output_tokens));
    counters.spend(document, Spent { requests: new.len() as u64, input_tokens, output_tokens });
    let mut hits = new.len().min(remembered);
    new.drain(..hits);
    // Another stage or row asked the same and brought the answer.
    if let Ok(Outcome::Accepted { from_memo: true, .. }) = &asked
        && new.pop().is_some()
    {
        hits += 1;
    }
    Counters::add(&counters.memo_hits, hits as u64);
    Counters::add(&counters.calls, new.len() as u64);
    for usage in new.into_iter().flatten() {
        Counters::add(&counters.input_tokens, usage.input_tokens);
        Counters::add(&counters.output_tokens, usage.output_tokens);
    }
    match asked {
        Err(Outage::Unasked) => {
            let reject = Reject::new("unasked", "the request was counted and not sent");
            Ok(Outcome::Rejected { reject, raw: String::new(), attempts: 0 })
        }
        asked => asked.map_err(outage),
    }
}

/// Runs `work` on any of the runtime's threads: a stream is polled by one, and what is made of an answer (or, by the offline
/// teacher, the answer itself) takes time. Dropping the future ends the work.
///
/// # Errors
/// The work's own.
pub(crate) async fn spawned<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);
    impl<T> Drop for AbortOnDrop<T> {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let mut running = AbortOnDrop(tokio::spawn(work));
    match (&mut running.0).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(Failure::bug(error.to_string())),
    }
}

/// The text column called `name`.
///
/// # Errors
/// A bug, if a port let rows through without it.
pub(crate) fn texts<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a StringArray, Failure> {
    let column = rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    column.ok_or_else(|| Failure::bug(format!("no text column `{name}`")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn identities_leave_out_what_does_not_decide_an_answer() {
        let model = |in_flight: u32, name: &str| json!({ "openai": { "base_url": "http://a/v1", "model": name }, "max_in_flight": in_flight });
        let model_identity = |entry: &Value| model_identity(entry, FilePath::new("")).unwrap();
        assert_eq!(model_identity(&model(1, "m")), model_identity(&model(9, "m")));
        assert_ne!(model_identity(&model(1, "m")), model_identity(&model(1, "n")));
        let mut wider = model(1, "m");
        wider["openai"]["context"] = json!("32Ki");
        assert_ne!(model_identity(&model(1, "m")), model_identity(&wider), "it decides what is rejected");
        let broken = json!({ "offline": {}, "openai": {} });
        assert_eq!(model_identity(&broken), broken);
    }

    #[test]
    fn the_schema_is_self_contained() {
        let schema = model_schema().to_value().to_string();
        assert!(schema.contains("max_in_flight"), "{schema}");
        assert!(!schema.contains("$ref"), "{schema}");
    }

    #[test]
    fn an_outage_says_what_to_do() {
        let failure = outage(Outage::Teacher { message: "refused".into(), hint: Some("start the server".into()) });
        assert_eq!(failure.message, "refused");
        assert!(failure.hint.is_some_and(|hint| hint.starts_with("start the server; every answer so far is kept")));
        assert!(outage(Outage::teacher("refused")).hint.is_some());
    }
}
