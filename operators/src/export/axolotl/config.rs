//! Axolotl's `config.yaml`, by its reference (<https://docs.axolotl.ai/docs/config-reference.html>).

use std::fmt::Write;

use ingrain_student::{Rule, Settings, checkpoint::Projection};
use serde_json::Value;

use super::{HELDOUT, MIXTURE};
use crate::export::{Model, Recipe};

/// What the file says.
pub(super) struct Config<'a> {
    /// The table, as `pipeline/stage.output`.
    pub(super) name: &'a str,
    pub(super) recipe: Option<&'a Recipe<'a>>,
    pub(super) settings: &'a Settings,
    /// The model that training starts from; none if it is to be filled in.
    pub(super) model: Option<Model>,
    /// The type of the data sets.
    pub(super) kind: &'static str,
    /// Whether there are rows whose loss is only measured.
    pub(super) heldout: bool,
}

/// A YAML file that is written line by line.
struct Lines(String);

impl Lines {
    /// An empty line, and a comment.
    fn about(&mut self, comment: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        // Writing to a string can't fail.
        let _ = writeln!(self.0, "{gap}# {}", comment.replace('\n', "\n# "));
    }

    fn set(&mut self, key: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{key}: {value}");
    }

    /// A value, and where it comes from.
    fn from(&mut self, key: &str, value: impl std::fmt::Display, origin: &str) {
        let _ = writeln!(self.0, "{key}: {value}  # {origin}");
    }
}

impl Config<'_> {
    /// The file. Text is quoted as in JSON, which YAML reads.
    pub(super) fn yaml(&self) -> String {
        let mut lines = Lines(String::new());
        let stage = self.recipe.map_or_else(
            || "no stage of the pipeline trains on it: values are the defaults for a pretrained base".to_owned(),
            |recipe| format!("trains on it as the pipeline's stage `{}` does", recipe.stage),
        );
        lines.about(&format!(
            "The rows of `{}` for Axolotl: {stage}.\nIn this folder: axolotl train config.yaml\n\
             Every key: https://docs.axolotl.ai/docs/config-reference.html",
            self.name
        ));
        self.model(&mut lines);
        self.data(&mut lines);
        self.training(&mut lines);
        lines.about("Memory and speed.");
        lines.set("bf16", "auto");
        lines.set("attn_implementation", "flash_attention_2");
        lines.set("gradient_checkpointing", true);
        lines.about(
            "Without these, every GPU holds the whole model. If it doesn't fit, uncomment them\n\
             (https://docs.axolotl.ai/docs/multi-gpu.html), with the class of the model's layers:\n\
             fsdp_version: 2\n\
             fsdp_config:\n  \
               offload_params: false\n  \
               cpu_ram_efficient_loading: true\n  \
               auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  \
               transformer_layer_cls_to_wrap: LlamaDecoderLayer\n  \
               state_dict_type: FULL_STATE_DICT\n  \
               reshard_after_forward: true",
        );
        lines.about("What comes out.");
        lines.set("output_dir", "./trained");
        lines.set("dataset_prepared_path", "./prepared");
        lines.set("logging_steps", 1);
        lines.set("saves_per_epoch", 1);
        lines.0
    }

    fn model(&self, lines: &mut Lines) {
        let base = self.recipe.map_or_else(String::new, |recipe| format!(" (stage `{}`)", recipe.base.stage));
        match &self.model {
            Some(Model { name, revision }) => {
                lines.about(&format!("The checkpoint to start from{base}."));
                lines.set("base_model", quoted(name));
                if let Some(revision) = revision {
                    lines.set("revision_of_model", quoted(revision));
                }
            }
            None => {
                lines.about(&format!("FILL IN the checkpoint to start from{base}: a folder, or a name on the Hugging Face hub."));
                lines.set("base_model", quoted("FILL IN"));
            }
        }
    }

    fn data(&self, lines: &mut Lines) {
        let of = |key: &str, file: &str| {
            format!("{key}:\n  - path: {file}\n    ds_type: json\n    split: train\n    type: {}\n", self.kind)
        };
        lines.about(match self.kind {
            "completion" => "The loss is on all of a row.",
            _ => "The loss is on segments with `label: true`: answers, and documents.",
        });
        lines.0.push_str(&of("datasets", MIXTURE));
        lines.set("train_on_inputs", self.kind == "completion");
        if self.heldout {
            lines.about("Rows that are never trained on.");
            lines.0.push_str(&of("test_datasets", HELDOUT));
            // With few rows, packed evaluation has no complete batch, and Axolotl refuses.
            lines.set("eval_sample_packing", false);
            match self.settings.evaluate_every {
                Some(steps) => lines.from("eval_steps", steps, &self.origin("evaluate_every")),
                None => lines.set("evals_per_epoch", 1),
            }
        } else {
            lines.set("val_set_size", "0.0");
        }
        lines.about(
            "The mixture's order is kept, in every epoch (`train` shuffles all but the first): rows are packed one after the\n\
             other, and attention stays within each.",
        );
        lines.set("shuffle_merged_datasets", false);
        lines.set("curriculum_sampling", true);
        lines.set("sample_packing", true);
        lines.set("sample_packing_sequentially", true);
        lines.set("pad_to_sequence_len", true);
        lines.from("sequence_len", self.settings.sequence_length, &self.origin("sequence"));
        if self.kind != "completion" {
            lines.about("Rows that are longer are cut off; without this, they would be left out.");
            lines.set("excess_length_strategy", "truncate");
        }
    }

    fn training(&self, lines: &mut Lines) {
        let settings = self.settings;
        lines.about(&format!(
            "A step has micro_batch_size x gradient_accumulation_steps x GPUs sequences: divide the second by the number of GPUs,\n\
             to stay at {} a step.",
            settings.batch_size
        ));
        lines.set("micro_batch_size", 1);
        lines.from("gradient_accumulation_steps", settings.batch_size, &self.origin("batch"));
        if let Some(lora) = settings.lora {
            lines.about("An adapter beside every projection, in place of all weights.");
            lines.set("adapter", "lora");
            lines.from("lora_r", lora.rank, &self.origin("lora"));
            lines.from("lora_alpha", number(lora.alpha), &self.origin("lora"));
            lines.set("lora_dropout", "0.0");
            let modules = Projection::ALL.map(|projection| format!("\n  - {}", projection.module())).concat();
            let _ = writeln!(lines.0, "lora_target_modules:{modules}");
        }
        lines.about("A linear warm-up and a cosine to 0.");
        lines.from("num_epochs", settings.epochs, &self.origin("epochs"));
        let optimizer = match settings.optimizer {
            Rule::AdamW => "adamw_torch_fused",
            Rule::Adafactor => "adafactor",
        };
        lines.from("optimizer", optimizer, &self.origin("optimizer"));
        lines.set("lr_scheduler", "cosine");
        for (key, value, field) in [
            ("learning_rate", settings.learning_rate, "learning_rate"),
            ("warmup_ratio", settings.warmup, "warmup"),
            ("weight_decay", settings.weight_decay, "weight_decay"),
            ("adam_beta1", settings.beta1, "beta1"),
            ("adam_beta2", settings.beta2, "beta2"),
            ("adam_epsilon", settings.epsilon, "epsilon"),
            ("max_grad_norm", settings.clip_norm, "clip"),
        ] {
            lines.from(key, number(value), &self.origin(field));
        }
        if let Some(recipe) = self.recipe {
            // Python's generators take 32 bits.
            lines.from("seed", recipe.seed & u64::from(u32::MAX), &self.origin("seed"));
        }
    }

    /// Where a value comes from: what the stage says in `field`, or its default.
    fn origin(&self, field: &str) -> String {
        let Some(recipe) = self.recipe else { return "default for a pretrained base".to_owned() };
        match recipe.config.get(field) {
            Some(Value::Null) if recipe.base.random => format!("{}: default of `{field}` for random weights", recipe.stage),
            Some(Value::Null) => format!("{}: default of `{field}` for a pretrained base", recipe.stage),
            _ => format!("{}: `{field}`", recipe.stage),
        }
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A number that YAML 1.1 takes for one: its exponents need a point before them.
fn number(value: f64) -> String {
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((digits, exponent)) if !digits.contains('.') => format!("{digits}.0e{exponent}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use ingrain_student::Lora;
    use serde_json::json;

    use super::*;
    use crate::export::Base;

    fn parsed(config: &Config<'_>) -> Value {
        serde_yaml::from_str(&config.yaml()).unwrap()
    }

    #[test]
    fn a_stage_gives_its_values() {
        let config = json!({ "batch": 8, "learning_rate": null, "beta2": 0.95 });
        let base = Base { stage: "base", random: false, path: Some("hf://meta/llama@abc"), table: None };
        let recipe = Recipe { stage: "student", config: &config, seed: (1 << 40) + 7, base };
        let settings = Settings { batch_size: 8, beta2: 0.95, epsilon: 1e-8, ..Settings::pretrained() };
        let config = Config {
            name: "handbook/mixture",
            recipe: Some(&recipe),
            settings: &settings,
            model: Some(Model::of("hf://meta/llama@abc")),
            kind: "completion",
            heldout: true,
        };
        let (yaml, value) = (config.yaml(), parsed(&config));
        assert_eq!((&value["base_model"], &value["revision_of_model"]), (&json!("meta/llama"), &json!("abc")));
        assert_eq!(value["datasets"][0]["path"], MIXTURE);
        assert_eq!(value["test_datasets"][0]["type"], "completion");
        assert_eq!(value["gradient_accumulation_steps"], 8);
        assert_eq!(value["learning_rate"], 1e-5);
        assert_eq!(value["seed"], 7);
        for line in [
            "gradient_accumulation_steps: 8  # student: `batch`",
            "learning_rate: 1.0e-5  # student: default of `learning_rate` for a pretrained base",
            "adam_epsilon: 1.0e-8  # student: `epsilon`",
        ] {
            assert!(yaml.contains(line), "{yaml}");
        }
        assert_eq!((value.get("adapter"), &value["optimizer"]), (None, &json!("adamw_torch_fused")));
    }

    #[test]
    fn an_adapter_is_one_there_too() {
        let lora = Some(Lora { rank: 8, alpha: 16.0 });
        let settings = Settings { lora, optimizer: Rule::Adafactor, ..Settings::pretrained() };
        let config = Config {
            name: "handbook/mixture",
            recipe: None,
            settings: &settings,
            model: None,
            kind: "completion",
            heldout: false,
        };
        let value = parsed(&config);
        assert_eq!((&value["adapter"], &value["lora_r"], &value["lora_alpha"]), (&json!("lora"), &json!(8), &json!(16.0)));
        let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        assert_eq!((&value["lora_target_modules"], &value["optimizer"]), (&json!(modules), &json!("adafactor")));
    }

    #[test]
    fn without_a_stage_the_model_is_to_be_filled_in() {
        let settings = Settings::pretrained();
        let config = Config {
            name: "handbook/mixture",
            recipe: None,
            settings: &settings,
            model: None,
            kind: "input_output",
            heldout: false,
        };
        let value = parsed(&config);
        assert_eq!(value["base_model"], "FILL IN");
        assert_eq!(value["sequence_len"], 2048);
        assert_eq!(value["train_on_inputs"], false);
        assert_eq!((value.get("test_datasets"), value.get("seed")), (None, None));
    }
}
