use std::{fs, path::PathBuf};

use futures::future::join_all;
use ingrain_llm::{Decoding, ModelConfig, Role};
use ingrain_student::{Checkpoint, Preset, tokenizer, weights::initialise};
use tempfile::TempDir;

use super::*;

const TEMPLATE: &str = "{% for message in messages %}{% if message.role == 'system' and not loop.first %}\
                        {{ raise_exception('one system turn') }}{% endif %}<|begin|>{{ message.role }}: {{ message.content }}<|end|>\
                        {% endfor %}{% if add_generation_prompt %}<|begin|>assistant:{% endif %}";

/// A folder with a checkpoint whose weights are drawn by `seed`.
fn checkpoint(seed: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["Who keeps the light? Lotte Amsel keeps the light.", "Hanne Drost sold the old boat."];
    let trained = tokenizer::train(texts.iter(), 270).unwrap();
    let architecture = Preset::Tiny.architecture(270);
    let mut weights = initialise(&architecture, seed);
    // Larger weights than a fresh model's, so that what it writes varies.
    for tensor in weights.tensors.values_mut().filter(|tensor| tensor.shape.len() == 2) {
        tensor.values.iter_mut().for_each(|value| *value *= 8.0);
    }
    Checkpoint::new(architecture, weights, trained.json.as_bytes()).unwrap().write(&path(&folder)).unwrap();
    folder
}

fn path(folder: &TempDir) -> PathBuf {
    folder.path().join("checkpoint")
}

fn model(folder: &TempDir, stop: &[&str]) -> LocalModel {
    LocalModel { checkpoint: path(folder), stop: stop.iter().map(|&stop| stop.to_owned()).collect() }
}

fn local(folder: &TempDir, stop: &[&str]) -> Local {
    Local::new(&model(folder, stop), folder.path(), Arc::new(Runner::new("cpu"))).unwrap()
}

fn request(content: &str, temperature: f64) -> Request {
    Request {
        messages: vec![
            Message { role: Role::System, content: "Be brief.".into() },
            Message { role: Role::User, content: content.into() },
        ],
        decoding: Decoding { temperature, top_p: 1.0, max_output_tokens: 12 },
        response_format: None,
        task: "answer".into(),
        variables: Value::Null,
    }
}

#[tokio::test]
async fn a_request_has_one_answer_whatever_is_asked_beside_it() {
    let folder = checkpoint(5);
    let teacher = local(&folder, &[]);
    let (greedy, sampled) = (request("Who keeps the light?", 0.0), request("Who sold the boat?", 1.0));
    let asked: Vec<_> = (0..4).flat_map(|n| [(&greedy, n, 0), (&sampled, n, 0), (&sampled, 0, n)]).collect();
    let together = join_all(asked.iter().map(|(request, draw, attempt)| teacher.answer(request, *draw, *attempt))).await;
    let together: Vec<Answer> = together.into_iter().map(Result::unwrap).collect();
    let again = local(&folder, &[]);
    for ((request, draw, attempt), answer) in asked.into_iter().zip(&together).step_by(3) {
        assert_eq!(&again.answer(request, draw, attempt).await.unwrap(), answer);
    }
    assert!((0..4).all(|n| together[3 * n].text == together[0].text), "greedy");
    assert!((1..4).all(|n| together[3 * n + 1].text != together[1].text), "draws differ");
    assert!((1..4).all(|n| together[3 * n + 2].text != together[1].text), "attempts differ");
    assert_eq!(together[2], together[1]);
    let prompt = teacher.front().as_ref().unwrap().prompt(&greedy.messages).unwrap();
    assert_eq!(together[0].usage, Some(Usage { input_tokens: prompt.len() as u64, output_tokens: 12 }));
    assert_eq!((together[0].finish, together[0].created_ms), (Finish::Length, 0));
    assert!(together[0].model.starts_with("local "));
}

#[tokio::test]
async fn answers_end_where_the_checkpoint_or_the_entry_says() {
    let folder = checkpoint(5);
    let whole = local(&folder, &[]).answer(&request("Who?", 0.0), 0, 0).await.unwrap();
    let place = whole.text.char_indices().nth(whole.text.chars().count() / 2).unwrap().0;
    let stop: String = whole.text[place..].chars().take(3).collect();
    let cut = local(&folder, &[&stop]).answer(&request("Who?", 0.0), 0, 0).await.unwrap();
    assert_eq!((cut.text.as_str(), cut.finish), (&whole.text[..whole.text.find(&stop).unwrap()], Finish::Stop));

    let all: Vec<u32> = (0..270).collect();
    fs::write(path(&folder).join("generation_config.json"), json!({ "eos_token_id": all }).to_string()).unwrap();
    let ended = local(&folder, &[]).answer(&request("Who?", 0.0), 0, 0).await.unwrap();
    assert_eq!((ended.text.as_str(), ended.finish), ("", Finish::Stop));
    assert_eq!(ended.usage.unwrap().output_tokens, 0);
}

#[tokio::test]
async fn messages_are_put_into_the_chat_template() {
    let folder = checkpoint(5);
    let plain = local(&folder, &[]);
    let of = |teacher: &Local, content: &str| {
        let front = teacher.front().as_ref().unwrap();
        let ids = front.prompt(&request(content, 0.0).messages).unwrap();
        let special = ids.iter().filter(|id| front.tokenizer.is_special(**id)).count();
        (front.tokenizer.decode(&ids).unwrap(), special)
    };
    assert_eq!(of(&plain, " Who <|end|> "), ("Be brief.\n\nWho <|end|>\n\n".to_owned(), 1));
    fs::write(path(&folder).join("chat_template.jinja"), TEMPLATE).unwrap();
    let chat = local(&folder, &[]);
    assert_ne!(chat.identity(), plain.identity());
    let (text, special) = of(&chat, "Who <|end|>?");
    assert_eq!((text.as_str(), special), ("system: Be brief.user: Who <|end|>?assistant:", 5));
    assert!(chat.answer(&request("Who?", 0.0), 0, 0).await.is_ok());

    let mut twice = request("Who?", 0.0);
    twice.messages[1].role = Role::System;
    let reject = chat.unfit(&twice).unwrap();
    assert_eq!(reject.reason, "invalid_request");
    assert_eq!(reject.detail, "the chat template in `chat_template.jinja`, line 1: one system turn");
    assert_eq!(chat.unfit(&request("Who?", 0.0)), None);
    let long = chat.unfit(&request(&"zq ".repeat(2000), 0.0)).unwrap();
    assert_eq!(long.reason, "too_long");
    assert!(
        long.detail.ends_with("`max_output_tokens` (12) are more than the 2048 that the model is made for"),
        "{}",
        long.detail
    );
}

#[test]
fn a_checkpoint_is_what_its_folder_holds() {
    let (one, same, other) = (checkpoint(1), checkpoint(1), checkpoint(2));
    let of = |folder: &TempDir, stop: &[&str]| identity(&model(folder, stop), folder.path()).unwrap();
    assert_eq!(of(&one, &[]), of(&same, &[]), "wherever it lies");
    assert_ne!(of(&one, &[]), of(&other, &[]));
    assert_ne!(of(&one, &[]), of(&one, &["\n"]));
    let before = of(&one, &[]);
    fs::write(path(&one).join("README.md"), "words").unwrap();
    assert_eq!(of(&one, &[]), before);
    fs::write(path(&one).join("generation_config.json"), "{}").unwrap();
    assert_ne!(of(&one, &[]), before);
}

#[tokio::test]
async fn weights_that_change_are_seen_whatever_time_their_file_shows() {
    let folder = checkpoint(1);
    let weights = path(&folder).join("model.safetensors");
    let of = || identity(&model(&folder, &[]), folder.path()).unwrap();
    let before = of();
    assert_eq!(of(), before);
    let teacher = local(&folder, &[]);
    let time = fs::metadata(&weights).unwrap().modified().unwrap();
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    fs::File::options().append(true).open(&weights).unwrap().set_modified(time).unwrap();
    assert_ne!(of(), before);
    let outage = teacher.answer(&request("Who?", 0.0), 0, 0).await.unwrap_err();
    assert!(outage.to_string().contains("has changed since the run began"), "{outage}");
}

#[tokio::test]
async fn two_checkpoints_take_turns_on_a_device() {
    let (one, two) = (checkpoint(1), checkpoint(2));
    let runner = Arc::new(Runner::new("cpu"));
    let [one, two] = [one, two].map(|folder| (Local::new(&model(&folder, &[]), folder.path(), runner.clone()).unwrap(), folder));
    let question = request("Who?", 0.0);
    let asked = (0..6).map(|n| if n % 2 == 0 { &one.0 } else { &two.0 }.answer(&question, 0, 0));
    let answers: Vec<Answer> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    assert!((0..6).all(|n| answers[n] == answers[n % 2]));
    assert_ne!(answers[0].text, answers[1].text);
    runner.vacate().await;
    assert_eq!(one.0.answer(&question, 0, 0).await.unwrap(), answers[0]);
    one.0.stop();
    assert!(one.0.answer(&question, 0, 0).await.unwrap_err().to_string().contains("is being stopped"));
    assert!(two.0.answer(&question, 0, 0).await.is_ok());
}

#[tokio::test]
async fn what_is_no_checkpoint_is_said() {
    let folder = checkpoint(1);
    let entry = |path: &Path| json!({ "local": { "checkpoint": path } });
    let wrong = |path: &Path| super::super::model_ready(&entry(path)).unwrap_err();
    let good = path(&folder);
    assert_eq!(super::super::model_ready(&entry(&good)), Ok(()));
    assert!(wrong(&good.join("none")).ends_with("none` isn't there: `checkpoint` names a folder with a Hugging Face checkpoint"));
    assert!(wrong(&good.join("config.json")).contains("config.json` isn't a folder"));
    assert!(wrong(folder.path()).ends_with("isn't a Hugging Face checkpoint: it has no `config.json`"));
    let beside = super::super::model_beside(&entry(Path::new("a/b")), Path::new("/x"));
    assert_eq!(beside, entry(Path::new("/x/a/b")));
    assert!(super::super::model_on_device(&beside));
    let config: ModelConfig = serde_json::from_value(beside).unwrap();
    assert!(config.embedder(None).is_none());

    fs::write(good.join("chat_template.jinja"), "\n{% if %}").unwrap();
    let outage = local(&folder, &[]).answer(&request("Who?", 0.0), 0, 0).await.unwrap_err();
    assert!(outage.to_string().contains("the chat template in `chat_template.jinja`, line 2: "), "{outage}");
    fs::remove_file(good.join("chat_template.jinja")).unwrap();
    let teacher = local(&folder, &[]);
    fs::remove_file(good.join("model.safetensors")).unwrap();
    assert!(wrong(&good).ends_with("it has no `model.safetensors`"));
    assert!(teacher.answer(&request("Who?", 0.0), 0, 0).await.is_err());
    fs::write(good.join("config.json"), "{").unwrap();
    fs::write(good.join("model.safetensors"), "").unwrap();
    assert!(wrong(&good).contains("config.json`: "));
}
