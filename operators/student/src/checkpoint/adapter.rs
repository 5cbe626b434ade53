//! Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) in the layout of PEFT.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::shards::Shards;
use super::writing::{whole, write_file, write_tensors};
use super::{CheckpointError, pretty, text_file};
use crate::architecture::{Architecture, Precision};
use crate::settings::Lora;
use crate::weights::{HostTensor, TensorError, Tensors, Weights};

/// The file that says what an adapter is.
pub const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts in front of the names of the model's own tensors.
const PREFIX: &str = "base_model.model.";

/// A matrix of a layer that an adapter changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the model's own")]
pub enum Projection {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl Projection {
    /// Every one, in the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// Its name in a layer, without that of the part.
    pub fn module(self) -> &'static str {
        let weight = self.weight().trim_end_matches(".weight");
        weight.rsplit_once('.').map_or(weight, |(_, module)| module)
    }

    /// The name of its weight in a layer.
    pub fn weight(self) -> &'static str {
        match self {
            Self::QProj => "self_attn.q_proj.weight",
            Self::KProj => "self_attn.k_proj.weight",
            Self::VProj => "self_attn.v_proj.weight",
            Self::OProj => "self_attn.o_proj.weight",
            Self::GateProj => "mlp.gate_proj.weight",
            Self::UpProj => "mlp.up_proj.weight",
            Self::DownProj => "mlp.down_proj.weight",
        }
    }
}

/// An adapter: for each weight `W`, `[out, in]`, that it changes, `A`, `[rank, in]`, and `B`, `[out, rank]`, so that
/// `W + alpha / rank * B * A` takes its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Its rank and scale.
    pub lora: Lora,
    /// `A` and `B` under the name of the weight that they change.
    pub pairs: BTreeMap<String, (HostTensor, HostTensor)>,
}

/// `adapter_config.json`, as far as it decides what an adapter does.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    rank_pattern: Map<String, Value>,
    #[serde(default)]
    alpha_pattern: Map<String, Value>,
}

impl Adapter {
    /// Reads an adapter's folder; the tensors must be pairs for weights of `architecture`.
    ///
    /// # Errors
    /// When a file is missing or malformed, the adapter is of another kind, or it doesn't fit.
    pub fn read(folder: &Path, architecture: &Architecture) -> Result<Self, CheckpointError> {
        let path = folder.join(CONFIG);
        let malformed = |reason: String| CheckpointError::Malformed { path: path.clone(), reason };
        let config: Config = serde_json::from_slice(&text_file(&path)?).map_err(|error| malformed(error.to_string()))?;
        let other = [
            (config.peft_type != "LORA", "`peft_type` isn't `LORA`"),
            (config.r == 0, "`r` is 0"),
            (config.fan_in_fan_out, "`fan_in_fan_out` is set"),
            (config.use_rslora, "`use_rslora` is set"),
            (config.use_dora, "`use_dora` is set"),
            (config.bias.is_some_and(|bias| bias != "none"), "`bias` isn't `none`"),
            (config.modules_to_save.is_some_and(|modules| !modules.is_empty()), "`modules_to_save` names modules"),
            (!config.rank_pattern.is_empty() || !config.alpha_pattern.is_empty(), "ranks differ between layers"),
        ];
        if let Some((_, what)) = other.into_iter().find(|(is, _)| *is) {
            return Err(malformed(format!("{what}: only plain LoRA of one rank can be read")));
        }
        let file = folder.join(WEIGHTS);
        let shards = Shards::of(std::slice::from_ref(&file))?;
        let misfit = |reason: String| CheckpointError::Mismatch { path: file.clone(), reason };
        let shapes: BTreeMap<String, Vec<usize>> = architecture.tensors().into_iter().collect();
        let mut pairs = BTreeMap::new();
        let names: Vec<String> = shards.shapes().map(|(name, _)| name.to_owned()).collect();
        for name in &names {
            if name.ends_with(".lora_B.weight") {
                continue;
            }
            let weight = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(".lora_A.weight"));
            let weight = weight.map(|module| format!("{module}.weight")).filter(|weight| shapes.contains_key(weight));
            let weight = weight.ok_or_else(|| misfit(format!("`{name}` changes no weight of the model")))?;
            let (a, b) = (shards.tensor(name)?, shards.tensor(&name.replace("lora_A", "lora_B"))?);
            let shape = &shapes[&weight];
            if shape.len() != 2 || a.shape != [config.r, shape[1]] || b.shape != [shape[0], config.r] {
                let found = format!("`{weight}` has shape {shape:?}, its `A` {:?} and its `B` {:?}", a.shape, b.shape);
                return Err(misfit(format!("{found}, where the rank is {}", config.r)));
            }
            pairs.insert(weight, (a, b));
        }
        if pairs.is_empty() || names.len() != 2 * pairs.len() {
            return Err(misfit("it must hold pairs of `lora_A` and `lora_B`, and nothing else".into()));
        }
        Ok(Self { lora: Lora { rank: config.r, alpha: config.lora_alpha }, pairs })
    }

    /// Writes the adapter's folder, which must not exist, as [`super::Checkpoint::write`] does. `base` is where its users find
    /// the model that it changes.
    ///
    /// # Errors
    /// When it exists, or the file system refuses.
    pub fn write(&self, folder: &Path, base: &str) -> Result<(), CheckpointError> {
        let module = |weight: &str| weight.trim_end_matches(".weight").to_owned();
        let mut targets: Vec<String> =
            self.pairs.keys().filter_map(|weight| module(weight).rsplit('.').next().map(str::to_owned)).collect();
        targets.sort_unstable();
        targets.dedup();
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": self.lora.rank,
            "lora_alpha": self.lora.alpha, "lora_dropout": 0.0, "target_modules": targets, "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true, "modules_to_save": null,
        });
        let mut tensors = Weights::default();
        for (weight, (a, b)) in &self.pairs {
            for (which, tensor) in [("lora_A", a), ("lora_B", b)] {
                tensors.tensors.insert(format!("{PREFIX}{}.{which}.weight", module(weight)), tensor.clone());
            }
        }
        let shapes = tensors.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect();
        whole(folder, |partial| {
            write_file(&partial.join(CONFIG), &pretty(&config)?)?;
            write_tensors(&partial.join(WEIGHTS), &partial.join(CONFIG), shapes, Precision::F32, &mut |name| tensors.tensor(name))
        })
    }

    /// What every product `B * A` is multiplied by.
    pub fn scale(&self) -> f64 {
        self.lora.alpha / self.lora.rank as f64
    }
}

/// A model's weights with an adapter merged into them, each when it is asked for.
#[derive(Debug, Clone)]
pub struct Merged {
    base: Arc<dyn Tensors>,
    adapter: Arc<Adapter>,
}

impl Merged {
    /// The weights of `base`, changed by `adapter`.
    pub fn new(base: Arc<dyn Tensors>, adapter: Adapter) -> Self {
        Self { base, adapter: Arc::new(adapter) }
    }
}

impl Tensors for Merged {
    fn mismatch(&self, architecture: &Architecture) -> Option<String> {
        self.base.mismatch(architecture)
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, TensorError> {
        let mut tensor = self.base.tensor(name)?;
        if let Some((a, b)) = self.adapter.pairs.get(name) {
            crate::cpu::add_product(&mut tensor, b, a, self.adapter.scale() as f32);
        }
        Ok(tensor)
    }
}
