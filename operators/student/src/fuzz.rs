//! Checkpoint folders that nobody meant.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use ingrain_mutation::{Strategy, holds, mutated, mutated_text, strategy, text, within};
use serde_json::{Value, json};

use crate::architecture::Architecture;
use crate::checkpoint::Checkpoint;
use crate::tokenizer::tests::TEXTS;
use crate::tokenizer::{Tokenizer, train};
use crate::weights::{Weights, initialise};

/// No folder of this size takes longer, whatever it claims.
const LONGEST: Duration = Duration::from_secs(1);

const HEADERS: [&str; 20] = [
    "\"F32\"",
    "\"F16\"",
    "\"BF16\"",
    "\"F64\"",
    "\"I8\"",
    "\"F4\"",
    "\"F8_E8M0\"",
    "\"BOOL\"",
    "\"C64\"",
    "[]",
    "[0]",
    "[-1]",
    "[4294967296,4294967296]",
    "[18446744073709551615]",
    "[0,0]",
    "[8,4]",
    "[0,18446744073709551615]",
    "\"__metadata__\":{},",
    "data_offsets",
    "lm_head.weight",
];

const CONFIGS: [&str; 24] = [
    "llama",
    "silu",
    "null",
    "-1",
    "1e999",
    "0.0",
    "[1,2]",
    "[]",
    "4294967296",
    "16777216",
    "1048576",
    "4096",
    "65536",
    "\"head_dim\":3,",
    "\"head_dim\":65536,",
    "\"num_key_value_heads\":3,",
    "\"rope_scaling\":{\"type\":\"llama3\"},",
    "\"rope_theta\":1e-300,",
    "\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":0},",
    "\"eos_token_id\":[],",
    "\"tie_word_embeddings\":false,",
    "\"vocab_size\":",
    "\"num_hidden_layers\":",
    "{}",
];

/// A model so small that its whole file is changed and not just its weights.
fn small() -> Architecture {
    Architecture::llama(300, 4, 6, 1, 2, 1)
}

fn tokenizer() -> String {
    train(TEXTS.iter(), 300).unwrap().json
}

fn weights_file(weights: &Weights) -> Vec<u8> {
    safetensors::serialize(weights.tensors.iter(), None).unwrap()
}

/// Weight files: whole ones, and ones with a header that doesn't fit.
fn weight_files() -> Vec<Vec<u8>> {
    let weights = initialise(&small(), 1);
    let whole = weights_file(&weights);
    let norm =
        Weights { tensors: BTreeMap::from([("model.norm.weight".to_owned(), weights.tensors["model.norm.weight"].clone())]) };
    vec![whole, weights_file(&norm)]
}

/// A weight file whose length fits its header, whatever that says.
fn headed(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0x3f; data]].concat()
}

fn written(folder: &Path, name: &str, content: &[u8]) {
    fs::write(folder.join(name), content).unwrap();
}

/// A folder with the files of a checkpoint.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::new(small(), initialise(&small(), 1), tokenizer().as_bytes()).unwrap();
    checkpoint.write(&folder.path().join("student")).unwrap();
    folder
}

/// Reads a folder; what is read must be what its own configuration says.
fn reads(folder: &Path) {
    if let Ok(checkpoint) = within(LONGEST, || Checkpoint::read(folder)) {
        assert_eq!(checkpoint.weights.mismatch(&checkpoint.architecture), None);
        for (name, tensor) in Weights::of(&checkpoint.architecture, &*checkpoint.weights).unwrap().tensors {
            assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>(), "{name}");
        }
        drop(checkpoint.tokenizer());
    }
}

#[test]
fn any_weights_are_read_or_refused() {
    let folder = folder();
    let path = folder.path().join("student");
    holds(48, &mutated(weight_files(), &HEADERS), |bytes| {
        written(&path, "model.safetensors", &bytes);
        reads(&path);
    });
}

#[test]
fn any_header_is_read_or_refused() {
    let folder = folder();
    let path = folder.path().join("student");
    let file = weight_files().remove(0);
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, data) = (String::from_utf8(file[8..8 + length].to_vec()).unwrap(), file.len() - 8 - length);
    let tiny = r#"{"model.norm.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F16","shape":[2,2],"data_offsets":[16,24]}}"#;
    let sizes = strategy::Union::new([(data..data + 1).boxed(), (0..64_usize).boxed(), (24..25_usize).boxed()]);
    holds(64, &(mutated_text(&[header.as_str(), tiny], &HEADERS), sizes), |(header, data)| {
        written(&path, "model.safetensors", &headed(&header, data));
        reads(&path);
    });
}

#[test]
fn any_configuration_is_one_that_fits_or_is_refused() {
    let folder = folder();
    let path = folder.path().join("student");
    let own = fs::read_to_string(path.join("config.json")).unwrap();
    let llama3 = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 300, "hidden_act": "silu", "eos_token_id": [1, 2], "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    });
    holds(64, &mutated_text(&[own, llama3.to_string()], &CONFIGS), |config| {
        if let Ok(architecture) = Architecture::from_json(config.as_bytes()) {
            let frequencies = architecture.rope_frequencies().unwrap();
            assert_eq!(frequencies.len(), architecture.head_dim() / 2);
            assert!(frequencies.iter().all(|frequency| frequency.is_finite()), "{frequencies:?}");
            let json = serde_json::to_vec(&architecture).unwrap();
            assert_eq!(Architecture::from_json(&json).unwrap(), architecture);
        }
        written(&path, "config.json", config.as_bytes());
        reads(&path);
    });
}

#[test]
fn any_tokenizer_is_one_or_an_error() {
    let added = json!({
        "version": "1.0", "added_tokens": [{ "id": 0, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false }],
        "normalizer": { "type": "Sequence", "normalizers": [{ "type": "NFC" }, { "type": "Replace", "pattern": { "Regex": "a+" }, "content": "b" }] },
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "\\w+|\\s" }, "behavior": "Isolated", "invert": false },
        "post_processor": { "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "</s>", "type_id": 0 } }], "pair": [],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [0], "tokens": ["</s>"] } } },
        "decoder": { "type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true },
        "model": { "type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": { "</s>": 0, "u": 1, "a": 2, "##b": 3 } },
    });
    let words: &'static [&'static str] = &[
        "\"BPE\"",
        "\"Unigram\"",
        "\"WordLevel\"",
        "\"WordPiece\"",
        "\"ByteLevel\"",
        "\"Metaspace\"",
        "\"merges\":[[\"a\",\"b\"]],",
        "\"vocab\":{},",
        "\"id\":4294967295",
        "\"id\":4294967296",
        "\"Regex\":\"(a|b|ab)*c\"",
        "\"Regex\":\"(\"",
        "null",
        "\"dropout\":2.0,",
        "\"byte_fallback\":true,",
        "\"fuse_unk\":true,",
        "\"truncation\":{\"max_length\":0,\"stride\":9,\"strategy\":\"LongestFirst\",\"direction\":\"Right\"},",
        "\"padding\":{\"strategy\":{\"Fixed\":4294967295}},",
        "\"unk_id\":9,",
        "\"\"",
    ];
    holds(64, &(mutated_text(&[tokenizer(), added.to_string()], words), text(40)), |(json, text)| {
        let Ok(tokenizer) = Tokenizer::from_json(json.as_bytes()) else { return };
        if let Ok(ids) = tokenizer.encode(&text) {
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary()), "{ids:?} of {}", tokenizer.vocabulary());
            drop(tokenizer.decode(&ids));
        }
        tokenizer.config(64);
    });
}

#[test]
fn an_index_names_files_of_its_folder_only() {
    let folder = folder();
    let path = folder.path().join("student");
    written(folder.path(), "outside.safetensors", &weight_files()[0]);
    let index = |file: &str| json!({ "weight_map": { "model.norm.weight": file, "b": "model.safetensors" } }).to_string();
    let seeds = [index("model.safetensors"), index("../outside.safetensors")];
    let words: &'static [&'static str] = &[
        "..",
        "../outside.safetensors",
        "/etc/passwd",
        "model.safetensors",
        "",
        ".",
        "\"weight_map\":3",
        "config.json",
        "a\\u0000b",
        "3",
    ];
    holds(64, &mutated_text(&seeds, words), |index| {
        written(&path, "model.safetensors.index.json", index.as_bytes());
        let names = serde_json::from_str::<Value>(&index).ok();
        let names =
            names.as_ref().and_then(|value| value["weight_map"].as_object()).map(|map| map.values().cloned().collect::<Vec<_>>());
        let outside = names.is_some_and(|names| names.iter().any(|name| name.as_str().is_some_and(|name| name.contains('/'))));
        assert!(!outside || Checkpoint::read(&path).is_err());
        reads(&path);
    });
}
