use std::borrow::Cow;

use half::bf16;
use safetensors::tensor::{Dtype, View};
use serde_json::json;

use super::*;
use crate::architecture::{Precision, Preset};
use crate::tokenizer::tests::TEXTS;
use crate::weights::{HostTensor, Weights, initialise};

impl View for &HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

fn weights(checkpoint: &Checkpoint) -> Weights {
    Weights::of(&checkpoint.architecture, &*checkpoint.weights).unwrap()
}

fn read_error(folder: &Path) -> String {
    Checkpoint::read(folder).unwrap_err().to_string()
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ingrain-checkpoint-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn checkpoint() -> Checkpoint {
    let tokenizer = crate::tokenizer::train(TEXTS.iter(), 300).unwrap();
    let architecture = Preset::Tiny.architecture(300);
    let weights = initialise(&architecture, 1);
    Checkpoint::new(architecture, weights, tokenizer.json.as_bytes()).unwrap()
}

#[test]
fn what_was_written_is_read() {
    let folder = Folder::new("round-trip");
    let (written, path) = (checkpoint(), folder.0.join("student"));
    written.write(&path).unwrap();
    let read = Checkpoint::read(&path).unwrap();
    assert_eq!(weights(&read), weights(&written));
    assert_eq!(read.architecture, written.architecture);
    assert_eq!(read.files[TOKENIZER], written.files[TOKENIZER]);
    assert!(read.files.contains_key(GENERATION_CONFIG));
    let permissions = |file: &str| fs::metadata(path.join(file)).unwrap().permissions();
    assert_eq!(permissions(WEIGHTS), permissions(CONFIG));
    assert_eq!(read.tokenizer().unwrap().end_id(), 1);
    assert!(matches!(written.write(&path), Err(CheckpointError::Exists(_))));
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "nothing but the checkpoint is left");
}

#[test]
fn sixteen_bit_shards_are_read() {
    let folder = Folder::new("shards");
    let written = checkpoint();
    let path = folder.0.join("student");
    written.write(&path).unwrap();
    fs::remove_file(path.join(WEIGHTS)).unwrap();
    let mut map = serde_json::Map::new();
    for (shard, chunk) in weights(&written).tensors.iter().collect::<Vec<_>>().chunks(8).enumerate() {
        let file = format!("model-{shard}.safetensors");
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = chunk
            .iter()
            .map(|(name, tensor)| {
                let bytes = tensor.values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
                ((*name).clone(), tensor.shape.clone(), bytes)
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            map.insert(name.clone(), file.clone().into());
            let view = safetensors::tensor::TensorView::new(Dtype::BF16, shape.clone(), bytes);
            (name.clone(), view.unwrap())
        });
        fs::write(path.join(&file), safetensors::serialize(views, None).unwrap()).unwrap();
    }
    fs::write(path.join(INDEX), json!({ "weight_map": map }).to_string()).unwrap();
    let read = Checkpoint::read(&path).unwrap();
    for (name, tensor) in weights(&written).tensors {
        let rounded: Vec<f32> = tensor.values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(read.weights.tensor(&name).unwrap().values, rounded);
    }
}

#[test]
fn a_false_header_is_refused_before_anything_is_allocated() {
    let folder = Folder::new("header");
    let path = folder.0.join("student");
    checkpoint().write(&path).unwrap();
    let file = path.join(WEIGHTS);
    let good = fs::read(&file).unwrap();
    let refuse = |bytes: &[u8], needle: &str| {
        fs::write(&file, bytes).unwrap();
        let message = read_error(&path);
        assert!(message.contains(needle), "{message}");
    };
    let mut long = good.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refuse(&long, "the header claims");
    refuse(&good[..good.len() - 4], "the header describes");
    let mut extra = good.clone();
    extra.extend([0; 4]);
    refuse(&extra, "the header describes");
    refuse(&good[..4], "model.safetensors");
    let mut small = weights(&checkpoint());
    small.tensors.remove("model.norm.weight");
    let bytes = safetensors::serialize(small.tensors.iter(), None).unwrap();
    refuse(&bytes, "missing: `model.norm.weight`");
}

#[test]
fn an_index_cannot_point_out_of_its_folder() {
    let folder = Folder::new("index");
    let path = folder.0.join("student");
    checkpoint().write(&path).unwrap();
    for name in ["../student/model.safetensors", "/etc/passwd", ".."] {
        fs::write(path.join(INDEX), json!({ "weight_map": { "a": name } }).to_string()).unwrap();
        let message = read_error(&path);
        assert!(message.contains("is not a file of this folder"), "{message}");
    }
}

/// A folder as [`Checkpoint::write`] writes it, in files of at most `bytes`.
fn in_files(folder: &Path, checkpoint: &Checkpoint, bytes: usize) {
    checkpoint.write(folder).unwrap();
    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    let architecture = &checkpoint.architecture;
    let mut fetch = |name: &str| checkpoint.weights.tensor(name);
    writing::write_weights(folder, architecture.tensors(), architecture.precision(), bytes, &mut fetch).unwrap();
}

#[test]
fn what_is_larger_than_a_file_goes_into_several() {
    let folder = Folder::new("several");
    let (written, path) = (checkpoint(), folder.0.join("student"));
    in_files(&path, &written, 400_000);
    let files =
        fs::read_dir(&path).unwrap().filter(|file| file.as_ref().unwrap().path().extension() == Some("safetensors".as_ref()));
    let index: Value = serde_json::from_slice(&fs::read(path.join(INDEX)).unwrap()).unwrap();
    assert!(files.count() > 2 && !path.join(WEIGHTS).exists());
    assert_eq!(index["metadata"]["total_size"], 4 * written.architecture.parameters());
    let read = Checkpoint::read(&path).unwrap();
    assert_eq!(weights(&read), weights(&written));
    let shard = index["weight_map"]["model.norm.weight"].as_str().unwrap();
    fs::remove_file(path.join(shard)).unwrap();
    let message = read_error(&path);
    assert!(message.contains(&format!("names `{shard}`")) && message.contains("still being written"), "{message}");
    assert!(read.weights.tensor("model.norm.weight").unwrap_err().to_string().contains("can't be read any more"));
}

#[test]
fn sixteen_bit_weights_are_written_where_the_configuration_says_so() {
    let folder = Folder::new("precision");
    let path = folder.0.join("student");
    let mut written = checkpoint();
    written.architecture.set_precision(Precision::Bf16);
    written.write(&path).unwrap();
    let read = Checkpoint::read(&path).unwrap();
    assert_eq!(read.architecture.precision(), Precision::Bf16);
    let size = fs::metadata(path.join(WEIGHTS)).unwrap().len() as usize;
    assert!((2 * written.architecture.parameters()..3 * written.architecture.parameters()).contains(&size), "{size}");
    let rounded = |tensor: HostTensor| tensor.values.into_iter().map(|v| bf16::from_f32(v).to_f32()).collect::<Vec<_>>();
    for (name, _) in written.architecture.tensors() {
        assert_eq!(read.weights.tensor(&name).unwrap().values, rounded(written.weights.tensor(&name).unwrap()));
    }
}

#[test]
fn a_folder_that_is_no_checkpoint_says_what_it_lacks() {
    let folder = Folder::new("lacks");
    assert!(read_error(&folder.0).contains("no `config.json`"));
    let path = folder.0.join("student");
    checkpoint().write(&path).unwrap();
    fs::rename(path.join(WEIGHTS), path.join("pytorch_model.bin")).unwrap();
    assert!(read_error(&path).contains("safetensors files only"));
}

#[test]
fn numbers_and_shapes_that_cannot_be_used_are_named() {
    let folder = Folder::new("numbers");
    let path = folder.0.join("student");
    checkpoint().write(&path).unwrap();
    let good = weights(&checkpoint());
    let data: Vec<u8> = vec![0; good.tensors["model.norm.weight"].values.len() * 8];
    let norm = safetensors::tensor::TensorView::new(Dtype::F64, vec![128], &data).unwrap();
    fs::write(path.join(WEIGHTS), safetensors::serialize([("model.norm.weight", norm)], None).unwrap()).unwrap();
    assert!(read_error(&path).contains("`model.norm.weight` is of type F64: F32, F16 and BF16 can be read"));
    let mut bent = good;
    bent.tensors.get_mut("model.norm.weight").unwrap().shape = vec![2, 64];
    fs::write(path.join(WEIGHTS), safetensors::serialize(bent.tensors.iter(), None).unwrap()).unwrap();
    assert!(read_error(&path).contains("`model.norm.weight` has shape [2, 64], and `config.json` asks for [128]"));
}

#[test]
fn a_tokenizer_with_more_ids_than_the_embedding_is_refused() {
    let mut checkpoint = checkpoint();
    checkpoint.architecture.vocab_size = 299;
    let message = checkpoint.tokenizer().unwrap_err().to_string();
    assert!(message.contains("300 ids, and the embedding 299 rows"), "{message}");
}

#[test]
fn a_tensor_that_cannot_be_had_leaves_no_folder() {
    let folder = Folder::new("cannot");
    let (checkpoint, path) = (checkpoint(), folder.0.join("student"));
    let mut fetch = |name: &str| match name {
        "model.norm.weight" => Err(crate::weights::missing(name)),
        _ => checkpoint.weights.tensor(name),
    };
    let error = write_folder(&path, &checkpoint.architecture, &checkpoint.files, &mut fetch).unwrap_err();
    assert!(error.to_string().contains("`model.norm.weight`"), "{error}");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
}
