use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use serde_json::{Value, json};

use super::{
    mixture::{Divided, Form, divide, encode, encoded, row, tokens},
    *,
};

fn config(value: Value) -> Train {
    serde_json::from_value(value).unwrap()
}

#[test]
fn defaults_are_those_of_the_base() {
    let nothing = config(json!({}));
    assert_eq!(nothing.settings(true, Precision::F32), Settings::default());
    assert_eq!(nothing.settings(false, Precision::F32), Settings::pretrained());
    let given =
        config(json!({ "epochs": 3, "learning_rate": 0.1, "sequence": "1Ki", "batch": 4, "clip": 0.5, "evaluate_every": 7 }));
    for random in [true, false] {
        let settings = given.settings(random, Precision::Bf16);
        assert_eq!((settings.epochs, settings.learning_rate, settings.sequence_length, settings.batch_size), (3, 0.1, 1024, 4));
        assert_eq!((settings.clip_norm, settings.evaluate_every, settings.precision), (0.5, Some(7), Precision::Bf16));
    }
}

#[test]
fn settings_that_can_not_be_used_are_named_as_written() {
    let wrong = config(json!({ "sequence": 1, "beta2": 1.0, "epsilon": 0.0, "heldout": 1.0, "learning_rate": -1.0 }));
    let fields: Vec<String> = wrong.bind(&Inputs::default()).unwrap_err().into_iter().map(|mistake| mistake.field).collect();
    assert_eq!(fields, ["/sequence", "/beta2", "/heldout", "/epsilon", "/learning_rate"]);
    let outputs = config(json!({})).bind(&Inputs::default()).unwrap();
    assert_eq!(
        outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(),
        [DEFAULT_OUTPUT, METRICS, SAMPLES, TOKENIZER]
    );
    let outputs = config(json!({ "lora": { "rank": 4 } })).bind(&Inputs::default()).unwrap();
    assert_eq!(outputs.last().map(|output| output.name.as_str()), Some(ADAPTER));
    assert_eq!(config(json!({ "lora": { "rank": 0 } })).bind(&Inputs::default()).unwrap_err()[0].field, "/lora/rank");
    let message = train_failure(TrainError::Device { device: Device::Cuda(0), said: "out of memory".into() });
    assert_eq!(
        (message.message.as_str(), message.fault),
        ("`cuda:0` failed: out of memory", ingrain_engine::failure::Fault::External)
    );
}

#[test]
fn rows_are_trained_on_in_the_order_of_their_positions() {
    let rows = vec![encoded(2, 0.5), encoded(0, 0.2), encoded(3, 0.001), encoded(1, 0.9), encoded(9, 0.002), encoded(19, 0.7)];
    let Divided { rest, heldout, replay } = divide(rows, 0.01);
    let ids = |rows| tokens(rows).iter().map(|row| row.ids[0]).collect::<Vec<_>>();
    assert_eq!((ids(rest), ids(heldout), ids(replay)), (vec![0, 1, 2, 19], vec![3], vec![9]));
}

#[test]
fn texts_begin_with_their_prompts_whose_loss_can_be_left_out() {
    let texts = ["Question: Who? Answer: Ida.", "Ida Brandt founded it in 1874."];
    let json = ingrain_student::tokenizer::train(texts.iter().cycle().take(8), 270).unwrap().json;
    let tokenizer = ingrain_student::Tokenizer::from_json(json.as_bytes()).unwrap();
    let text = |values: [Option<&str>; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("row_id", text([Some("r"), Some("s")]), false),
        ("parent_id", text([Some("a"), Some("b")]), false),
        ("prompt", text([Some("Question: Who?"), None]), true),
        ("text", text([Some("Question: Who? Ida."), Some("Ida Brandt")]), false),
        ("position", Arc::new(Int64Array::from(vec![0, 1])) as ArrayRef, false),
    ])
    .unwrap();
    let form = |chat, loss_on| Form { tokenizer: tokenizer.clone(), chat, loss_on };
    let all = encode(&batch, &form(None, LossOn::All)).unwrap();
    let completion = encode(&batch, &form(None, LossOn::Completion)).unwrap();
    let prompt = tokenizer.encode("Question: Who?").unwrap().len();
    assert_eq!((row(&all[0]).loss_from, row(&completion[0]).loss_from), (1, 1 + prompt));
    assert_eq!(row(&all[0]).ids, row(&completion[0]).ids);
    assert_eq!(tokenizer.decode(&row(&all[0]).ids).unwrap(), "Question: Who? Ida.");
    assert_eq!(row(&all[0]).ids.last(), Some(&tokenizer.end_id()));
    assert_eq!(row(&completion[1]), row(&all[1]));

    let template = "{% for m in messages %}<|begin|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}\
                    {% if add_generation_prompt %}<|begin|>assistant: {% endif %}";
    let files = std::collections::BTreeMap::from([("chat_template.jinja".to_owned(), template.as_bytes().to_vec())]);
    let chat = crate::render::Chat::of(&files, tokenizer.clone()).unwrap();
    let said = chat.exchange("Who?", "Ida <|end|>.").unwrap();
    let schema = batch.schema();
    let columns = schema.fields().iter().map(|field| field.name().clone()).zip(batch.columns().to_vec());
    let columns: Vec<_> = columns.chain([("messages".to_owned(), text([Some(&said.messages), None]))]).collect();
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap();
    let chatted = encode(&batch, &form(Some(chat.clone()), LossOn::Completion)).unwrap();
    assert_eq!(row(&chatted[0]).ids.len(), said.tokens);
    assert_eq!(row(&chatted[0]).ids[..row(&chatted[0]).loss_from], chat.asked("Who?").unwrap());
    let special = row(&chatted[0]).ids.iter().filter(|id| tokenizer.is_special(**id)).count();
    assert_eq!(special, 4, "each turn's begin and end, once");
    assert_eq!(row(&chatted[1]), row(&completion[1]));
    assert_eq!(row(&encode(&batch, &form(Some(chat), LossOn::All)).unwrap()[0]).loss_from, 1);
}

#[tokio::test]
async fn a_training_on_the_processor_gives_weights_and_an_event_a_step() {
    let texts = ["Ida Brandt founded the Harbour Office in 1874.", "The Harbour Office keeps nine pilots."];
    let json = ingrain_student::tokenizer::train(texts.iter().cycle().take(8), 270).unwrap().json;
    let tokenizer = ingrain_student::Tokenizer::from_json(json.as_bytes()).unwrap();
    let architecture = ingrain_student::Architecture::llama(tokenizer.vocabulary(), 16, 32, 1, 2, 2);
    let weights = ingrain_student::weights::initialise(&architecture, 1);
    let row =
        |text: &str| ingrain_student::Row::whole(tokenizer.begin_id(), &[], &tokenizer.encode(text).unwrap(), tokenizer.end_id());
    for lora in [false, true] {
        let mut settings = config(json!({ "sequence": 64, "batch": 1, "epochs": 3 })).settings(true, Precision::F32);
        settings.lora = lora.then_some(Lora { rank: 2, alpha: 4.0 });
        let (architecture, weights, json) = (architecture.clone(), weights.clone(), json.clone());
        let rows: Vec<_> = texts.iter().map(|text| row(text)).collect();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let prompts = vec![rows[0].ids[..4].to_vec()];
        let watched = Watched { heldout: rows.clone(), prompts, ..Watched::default() };
        let weights = Arc::new(weights);
        let job = Job { architecture, weights, rows, watched, settings, seed: 7, progress: None };
        let counters = Arc::new(Counters::default());
        let files = BTreeMap::from([(tokenizer::FILE.to_owned(), json.into_bytes())]);
        let folders = Folders { checkpoint: at("checkpoint"), adapter: at("adapter"), base: "base".into(), files };
        let learnt = learn(job, Device::Cpu, counters.clone(), folders).await.unwrap();
        assert_eq!((learnt.steps, learnt.events.len()), (learnt.events[0].steps, learnt.events[0].steps));
        let read = ingrain_student::Checkpoint::read(&at("checkpoint")).unwrap();
        assert_eq!(&read.architecture, &learnt.architecture);
        assert_eq!(at("adapter").exists(), lora);
        let seen = learnt.events.last().unwrap().seen.as_ref().unwrap();
        assert!(seen.heldout_loss.is_some() && seen.samples.len() == 1);
        let count = learnt.events.len();
        assert!(counters.message.lock().unwrap().starts_with(&format!("step {count} of {count}")));
    }
}
