//! The shape of a model: Hugging Face's `config.json`, and the presets.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Why a `config.json` can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchitectureError {
    /// It isn't the JSON it should be.
    #[error("`config.json`: {0}")]
    Parse(#[from] serde_json::Error),
    /// A field asks for what isn't implemented, or fields contradict each other.
    #[error("`config.json`: {0}")]
    Unsupported(String),
}

/// One id or several, as `eos_token_id` comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// One id.
    One(u32),
    /// Any of these.
    Many(Vec<u32>),
}

impl TokenIds {
    /// The first id.
    pub fn first(&self) -> Option<u32> {
        match self {
            Self::One(id) => Some(*id),
            Self::Many(ids) => ids.first().copied(),
        }
    }
}

/// The families of models that are implemented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3: `LlamaForCausalLM`.
    Llama,
    /// Qwen3, dense: Llama with a norm over each head of queries and keys. `Qwen3ForCausalLM`.
    Qwen3,
}

impl Family {
    /// Every family, by its `model_type`.
    const ALL: [(&'static str, Self); 2] = [("llama", Self::Llama), ("qwen3", Self::Qwen3)];

    fn named(model_type: &str) -> Result<Self, ArchitectureError> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == model_type);
        found.map(|(_, family)| family).ok_or_else(|| {
            let known = Self::ALL.map(|(name, _)| format!("`{name}`")).join(" and ");
            ArchitectureError::Unsupported(format!("`model_type` is `{model_type}`: {known} are implemented"))
        })
    }
}

/// What numbers a checkpoint's weights are, and what it is trained in where the device can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats with the exponent of 32-bit ones.
    Bf16,
}

impl Precision {
    /// As `config.json` writes it.
    pub fn dtype(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// A model's `config.json`. Keys that mean nothing here are kept in `rest` and written back as they came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// `["LlamaForCausalLM"]` or `["Qwen3ForCausalLM"]`.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// `llama` or `qwen3`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; where it is missing, as many as query heads, and 32 in a Qwen3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; where it is missing, `hidden_size / num_attention_heads`, and 128 in a Qwen3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Base of the rotary frequencies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// How the rotary frequencies are stretched (`llama3`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Where transformers 5 keeps `rope_theta` and the scaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<RopeScaling>,
    /// Added to the mean square before its root is taken.
    #[serde(default = "default_rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Whether the head's weight is the embedding's.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// The longest sequence that the model is meant for.
    #[serde(default = "default_max_position_embeddings")]
    pub max_position_embeddings: usize,
    /// `silu`.
    #[serde(default = "default_hidden_act")]
    pub hidden_act: String,
    /// Whether the attention projections have a bias.
    #[serde(default)]
    pub attention_bias: bool,
    /// Whether the feed-forward projections have a bias; only `false` is implemented.
    #[serde(default)]
    pub mlp_bias: bool,
    /// The token in front of a text.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    #[serde(default)]
    pub eos_token_id: Option<TokenIds>,
    /// The token for positions that hold nothing.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
    /// Every other key.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// `rope_scaling`, or transformers 5's `rope_parameters`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// `default` or `llama3`.
    #[serde(default, alias = "type", skip_serializing_if = "Option::is_none")]
    pub rope_type: Option<String>,
    /// Base of the frequencies, where transformers 5 keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// The other parameters.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

fn default_max_position_embeddings() -> usize {
    2048
}

fn default_hidden_act() -> String {
    "silu".into()
}

/// A model that is trained from random weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// 2 layers of width 128, 4 heads, feed-forward 336: learns some hundred thousand tokens in about a minute on two cores.
    Tiny,
    /// 4 layers of width 256, 8 heads over 4 of keys and values, feed-forward 688.
    Small,
    /// 8 layers of width 512, 8 heads over 4 of keys and values, feed-forward 1,408.
    Medium,
    /// 12 layers of width 768, 12 heads over 4 of keys and values, feed-forward 2,048: about 0.1 billion weights with a
    /// vocabulary of 32 thousand.
    Large,
}

impl Preset {
    /// The architecture for a tokenizer with `vocabulary` ids.
    pub fn architecture(self, vocabulary: usize) -> Architecture {
        match self {
            Self::Tiny => Architecture::llama(vocabulary, 128, 336, 2, 4, 4),
            Self::Small => Architecture::llama(vocabulary, 256, 688, 4, 8, 4),
            Self::Medium => Architecture::llama(vocabulary, 512, 1408, 8, 8, 4),
            Self::Large => Architecture::llama(vocabulary, 768, 2048, 12, 12, 4),
        }
    }
}

impl Architecture {
    /// A Llama of the given sizes with tied embeddings, `rope_theta` 10,000 and room for 2,048 positions.
    pub fn llama(
        vocabulary: usize,
        hidden: usize,
        feed_forward: usize,
        layers: usize,
        heads: usize,
        key_value_heads: usize,
    ) -> Self {
        let mut rest = Map::new();
        rest.insert("torch_dtype".into(), "float32".into());
        rest.insert("initializer_range".into(), 0.02.into());
        rest.insert("use_cache".into(), true.into());
        Self {
            architectures: vec!["LlamaForCausalLM".into()],
            model_type: "llama".into(),
            hidden_size: hidden,
            intermediate_size: feed_forward,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: Some(key_value_heads),
            head_dim: Some(hidden / heads),
            vocab_size: vocabulary,
            rope_theta: Some(10_000.0),
            rope_scaling: None,
            rope_parameters: None,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            max_position_embeddings: 2048,
            hidden_act: default_hidden_act(),
            attention_bias: false,
            mlp_bias: false,
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
            rest,
        }
    }

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// When it isn't one, or asks for what isn't implemented.
    pub fn from_json(json: &[u8]) -> Result<Self, ArchitectureError> {
        /// What every configuration has: a model of another family lacks fields, too, and is to be named first.
        #[derive(Deserialize)]
        struct Kind {
            model_type: String,
        }
        let kind: Kind = serde_json::from_slice(json)?;
        Family::named(&kind.model_type)?;
        let architecture: Self = serde_json::from_slice(json)?;
        architecture.check()?;
        Ok(architecture)
    }

    /// Checks that the sizes fit together and that everything asked for is implemented.
    ///
    /// # Errors
    /// Names the field, its value and what would be right.
    pub fn check(&self) -> Result<(), ArchitectureError> {
        let wrong = |text: String| Err(ArchitectureError::Unsupported(text));
        self.family()?;
        if self.hidden_act != "silu" {
            return wrong(format!("`hidden_act` is `{}`: only `silu` is implemented", self.hidden_act));
        }
        if self.mlp_bias {
            return wrong("`mlp_bias` is `true`: only `false` is implemented".into());
        }
        if self.rest.contains_key("quantization_config") {
            return wrong(
                "the weights are quantised (`quantization_config`): take the checkpoint that they were made from".into(),
            );
        }
        let windows = self.rest.get("use_sliding_window").and_then(Value::as_bool) == Some(true);
        let layers = self.rest.get("layer_types").and_then(Value::as_array).into_iter().flatten();
        let other = layers.filter_map(Value::as_str).find(|kind| *kind != "full_attention");
        if windows || other.is_some() {
            let what = other.unwrap_or("sliding_attention");
            return wrong(format!("a layer's attention is `{what}`: only `full_attention` is implemented"));
        }
        // The limits are far above any published model; they keep products of sizes from overflowing.
        let sizes = [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.key_value_heads(), 1 << 12),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 30),
        ];
        for (name, value, limit) in sizes {
            if value == 0 || value > limit {
                return wrong(format!("`{name}` is {value}: it must be from 1 to {limit}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.key_value_heads()) {
            return wrong(format!(
                "`num_attention_heads` is {} and `num_key_value_heads` {}: the first must be a multiple of the second",
                self.num_attention_heads,
                self.key_value_heads()
            ));
        }
        let head = self.head_dim();
        if head == 0 || !head.is_multiple_of(2) || head > 1 << 16 {
            return wrong(format!("a head is {head} wide (`head_dim`, or `hidden_size` over the heads): it must be even"));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return wrong(format!("`rms_norm_eps` is {}: it must be above 0 and below 1", self.rms_norm_eps));
        }
        self.rope_frequencies().map(|_| ())
    }

    /// The family that `model_type` names.
    ///
    /// # Errors
    /// When it isn't implemented: the message lists those that are.
    pub fn family(&self) -> Result<Family, ArchitectureError> {
        Family::named(&self.model_type)
    }

    fn is_qwen3(&self) -> bool {
        self.family().is_ok_and(|family| family == Family::Qwen3)
    }

    /// The number of key and value heads.
    pub fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(if self.is_qwen3() { 32 } else { self.num_attention_heads })
    }

    /// The width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| if self.is_qwen3() { 128 } else { self.hidden_size / self.num_attention_heads.max(1) })
    }

    /// Whether each head of queries and keys goes through a norm of its own before the rotary positions.
    pub fn normalises_heads(&self) -> bool {
        self.is_qwen3()
    }

    /// What numbers the weights are, by `dtype` (before transformers 5: `torch_dtype`): what isn't `bfloat16` counts as
    /// 32-bit floats.
    pub fn precision(&self) -> Precision {
        let dtype = ["dtype", "torch_dtype"].iter().find_map(|key| self.rest.get(*key)).and_then(Value::as_str);
        if dtype == Some(Precision::Bf16.dtype()) { Precision::Bf16 } else { Precision::F32 }
    }

    /// Says that the weights are of this precision.
    pub fn set_precision(&mut self, precision: Precision) {
        let key = if self.rest.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        self.rest.insert(key.into(), precision.dtype().into());
    }

    /// The number of weights.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Floating-point operations that training takes for a token in documents of `length`: six a weight that is multiplied with,
    /// and attention over half of the document (Kaplan et al., arXiv 2001.08361, section 2.1).
    pub fn training_flops(&self, length: usize) -> f64 {
        let matrices =
            self.tensors().into_iter().filter(|(_, shape)| shape.len() > 1).map(|(_, shape)| shape.iter().product::<usize>());
        let embedding = if self.tie_word_embeddings { 0 } else { self.vocab_size * self.hidden_size };
        let attention = self.num_hidden_layers * self.num_attention_heads * self.head_dim() * length;
        6.0 * (matrices.sum::<usize>() - embedding + attention) as f64
    }

    /// Name and shape of every tensor, in the order of the forward pass; matrices are `[out, in]`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab_size, self.hidden_size])];
        for layer in 0..self.num_hidden_layers {
            let named = |(name, shape): (&str, Vec<usize>)| (format!("model.layers.{layer}.{name}"), shape);
            tensors.extend(self.layer_tensors().into_iter().map(named));
        }
        tensors.push(("model.norm.weight".into(), vec![self.hidden_size]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".into(), vec![self.vocab_size, self.hidden_size]));
        }
        tensors
    }

    /// Name and shape of a layer's tensors, in the order of its forward pass.
    pub(crate) fn layer_tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (hidden, feed_forward, head) = (self.hidden_size, self.intermediate_size, self.head_dim());
        let (query, key_value) = (self.num_attention_heads * head, self.key_value_heads() * head);
        let mut tensors = vec![
            ("input_layernorm.weight", vec![hidden]),
            ("self_attn.q_proj.weight", vec![query, hidden]),
            ("self_attn.k_proj.weight", vec![key_value, hidden]),
            ("self_attn.v_proj.weight", vec![key_value, hidden]),
        ];
        if self.attention_bias {
            tensors.extend([
                ("self_attn.q_proj.bias", vec![query]),
                ("self_attn.k_proj.bias", vec![key_value]),
                ("self_attn.v_proj.bias", vec![key_value]),
            ]);
        }
        if self.normalises_heads() {
            tensors.extend([("self_attn.q_norm.weight", vec![head]), ("self_attn.k_norm.weight", vec![head])]);
        }
        tensors.push(("self_attn.o_proj.weight", vec![hidden, query]));
        if self.attention_bias {
            tensors.push(("self_attn.o_proj.bias", vec![hidden]));
        }
        tensors.extend([
            ("post_attention_layernorm.weight", vec![hidden]),
            ("mlp.gate_proj.weight", vec![feed_forward, hidden]),
            ("mlp.up_proj.weight", vec![feed_forward, hidden]),
            ("mlp.down_proj.weight", vec![hidden, feed_forward]),
        ]);
        tensors
    }

    /// The angle per position of each pair of a head's dimensions, `head_dim / 2` of them, with the scaling of Llama 3.1
    /// where the configuration asks for it (`transformers`, `modeling_rope_utils.py`).
    ///
    /// # Errors
    /// When the scaling is of another kind, or lacks a parameter.
    pub fn rope_frequencies(&self) -> Result<Vec<f64>, ArchitectureError> {
        let parameters = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let in_parameters = self.rope_parameters.as_ref().and_then(|parameters| parameters.rope_theta);
        let theta = self.rope_theta.or(in_parameters).unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(ArchitectureError::Unsupported(format!("`rope_theta` is {theta}: it must be above 0")));
        }
        let head = self.head_dim();
        let plain = (0..head / 2).map(|pair| theta.powf(-2.0 * pair as f64 / head as f64));
        let kind = parameters.and_then(|parameters| parameters.rope_type.as_deref()).unwrap_or("default");
        let (Some(parameters), "llama3") = (parameters, kind) else {
            return match kind {
                "default" => Ok(plain.collect()),
                other => Err(ArchitectureError::Unsupported(format!(
                    "the rotary scaling is `{other}`: only `default` and `llama3` are implemented"
                ))),
            };
        };
        let parameter = |name: &str| {
            parameters.rest.get(name).and_then(Value::as_f64).filter(|value| *value > 0.0).ok_or_else(|| {
                ArchitectureError::Unsupported(format!("the rotary scaling `llama3` needs a number above 0 as `{name}`"))
            })
        };
        let factor = parameter("factor")?;
        let (low, high) = (parameter("low_freq_factor")?, parameter("high_freq_factor")?);
        let original = parameter("original_max_position_embeddings")?;
        Ok(plain
            .map(|frequency| {
                let wavelength = 2.0 * PI / frequency;
                if wavelength > original / low {
                    frequency / factor
                } else if wavelength < original / high {
                    frequency
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_kept() {
        let mut value = serde_json::to_value(Preset::Tiny.architecture(2048)).unwrap();
        value["some_future_key"] = serde_json::json!({"a": [1, 2]});
        let architecture = Architecture::from_json(value.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(&architecture).unwrap(), value);
    }

    #[test]
    fn tiny_has_the_size_it_says() {
        let architecture = Preset::Tiny.architecture(2048);
        architecture.check().unwrap();
        assert_eq!(architecture.parameters(), 2048 * 128 + 2 * (4 * 128 * 128 + 3 * 128 * 336 + 2 * 128) + 128);
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        let refuse = |change: &dyn Fn(&mut Architecture), needle: &str| {
            let mut architecture = Preset::Tiny.architecture(300);
            change(&mut architecture);
            let message = architecture.check().unwrap_err().to_string();
            assert!(message.contains(needle), "{message}");
        };
        refuse(&|a| a.model_type = "mamba2".into(), "`model_type` is `mamba2`: `llama` and `qwen3` are implemented");
        refuse(&|a| a.mlp_bias = true, "`mlp_bias`");
        refuse(&|a| drop(a.rest.insert("use_sliding_window".into(), true.into())), "`sliding_attention`");
        refuse(&|a| drop(a.rest.insert("quantization_config".into(), Value::Null)), "quantised");
        refuse(&|a| a.num_key_value_heads = Some(3), "`num_key_value_heads`");
        refuse(&|a| a.head_dim = Some(7), "`head_dim`");
        refuse(&|a| a.num_hidden_layers = usize::MAX, "`num_hidden_layers`");
    }

    #[test]
    fn a_model_of_another_family_is_named_before_what_it_lacks() {
        let message = Architecture::from_json(br#"{"model_type": "gpt2", "n_embd": 768}"#).unwrap_err().to_string();
        assert_eq!(message, "`config.json`: `model_type` is `gpt2`: `llama` and `qwen3` are implemented");
    }

    #[test]
    fn a_qwen3_without_sizes_of_heads_has_those_of_transformers() {
        let mut architecture = Preset::Tiny.architecture(300);
        (architecture.head_dim, architecture.num_key_value_heads) = (None, None);
        assert_eq!((architecture.head_dim(), architecture.key_value_heads()), (32, 4));
        architecture.model_type = "qwen3".into();
        assert_eq!((architecture.head_dim(), architecture.key_value_heads()), (128, 32));
        assert!(architecture.layer_tensors().contains(&("self_attn.q_norm.weight", vec![128])));
    }

    #[test]
    fn precision_stands_where_the_file_keeps_it() {
        let mut architecture = Preset::Tiny.architecture(300);
        assert_eq!(architecture.precision(), Precision::F32);
        architecture.set_precision(Precision::Bf16);
        assert_eq!((architecture.precision(), architecture.rest["torch_dtype"].as_str()), (Precision::Bf16, Some("bfloat16")));
        architecture.rest.insert("dtype".into(), "float32".into());
        architecture.set_precision(Precision::Bf16);
        assert_eq!(architecture.rest["dtype"], "bfloat16");
    }

    #[test]
    fn llama3_scaling_leaves_high_frequencies_and_stretches_low_ones() {
        let mut architecture = Preset::Tiny.architecture(300);
        architecture.head_dim = Some(128);
        architecture.rope_theta = Some(500_000.0);
        let plain = architecture.rope_frequencies().unwrap();
        architecture.rope_scaling = serde_json::from_value(serde_json::json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        }))
        .unwrap();
        let scaled = architecture.rope_frequencies().unwrap();
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!(scaled.iter().zip(&plain).all(|(s, p)| *s <= *p && *s >= p / 8.0));
    }
}
