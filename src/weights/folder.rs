//! Exports a fine-tuned model as a model folder that other programs load: the base model's folder with new weights in one part.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Tensor, TensorData};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    FileDtype, FlatTensor, TensorBytes, TensorFile, has_weights, local_paths, read_json, shards, write_tensors,
};
use crate::{
    disk::remove_folder,
    error::{Error, Result},
};

pub(super) const INDEX: &str = "model_index.json";
pub(super) const CONFIG: &str = "config.json";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// The part of a model folder that was trained, as described by its family.
#[derive(Clone, Copy, Debug)]
pub struct TrainedPart {
    /// The name of its folder.
    pub folder: &'static str,
    /// The weight whose shape may change, if one may.
    pub widened: Option<Widened>,
    /// Whether the matrix of this name is stored as the weight of a 1×1 convolution in a part with this `config.json`. Used where
    /// the base has no weights whose shapes would tell.
    pub pointwise: fn(&str, &Map<String, Value>) -> bool,
}

/// A weight whose number of inputs may change: the first convolution, when a model is widened to more input channels.
#[derive(Clone, Copy, Debug)]
pub struct Widened {
    /// Its name in the checkpoint.
    pub weight: &'static str,
    /// The pipeline class of a model with this many input channels; `None` keeps that of the base.
    pub class: fn(usize) -> Option<&'static str>,
}

/// Optional parts of a pipeline, which kiln does not download.
const OPTIONAL: [&str; 3] = ["safety_checker", "feature_extractor", "image_encoder"];

/// Report of an [exported](export_folder) model folder.
#[derive(Clone, Debug, Serialize)]
pub struct FolderReport {
    /// The folder that was written.
    pub path: PathBuf,
    /// The diffusers class that loads it.
    pub class: String,
    /// The part that was trained.
    pub part: &'static str,
    /// The number of its tensors.
    pub tensors: usize,
    /// The number of their values.
    pub parameters: usize,
    /// The size of the weights file in bytes.
    pub bytes: u64,
}

impl fmt::Display for FolderReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { path, class, part, tensors, parameters, bytes } = self;
        let megabytes = *bytes as f64 / 1e6;
        write!(
            f,
            "{}: {class}; {part}: {tensors} tensors, {parameters} parameters, {megabytes:.1} MB; ",
            path.display()
        )?;
        write!(f, "read back, identical")
    }
}

/// Writes a model folder in the layout of diffusers to `output`: a copy of `base`, but with `tensors` (every tensor of the trained
/// `part`, by its name in the checkpoint) in `dtype` as the weights of that part. A tensor may lack axes of
/// length one that it has in the base's file.
///
/// - Each tensor gets its shape in the base's file, or, if the base has no weights of that part (possible for a model trained from
///   random weights), the one that the part's `config.json` implies. Only the widened weight may have a different number of
///   inputs; `config.json` and, where needed, the pipeline's class are changed to match.
/// - The weights of the other parts are hard links to the files of `base` where the file system supports them, else copies: never
///   symbolic links, which would break when a cache is cleared. Other files are copies, so that an edit changes only one model.
/// - Paths of this machine, such as `_name_or_path`, are removed from configurations.
/// - A safety checker that the base's index names but its folder lacks is left out of the index.
///
/// The folder is written as `NAME.partial` and renamed when it is complete and its weights were read back and compared.
///
/// # Errors
/// `output` exists; `base` is not such a folder; tensors are missing, left over or misshapen (one error lists them all); values
/// are not finite in `dtype`; or writing fails. Then nothing is left behind.
pub fn export_folder(
    base: impl AsRef<Path>,
    part: &TrainedPart,
    tensors: &BTreeMap<String, FlatTensor>,
    output: impl AsRef<Path>,
    dtype: FileDtype,
) -> Result<FolderReport> {
    let (base, output) = (base.as_ref(), output.as_ref());
    if fs::symlink_metadata(output).is_ok() {
        return Err(Error::file(output, "exists already").hint("give another name, or remove it first"));
    }
    let stored = stored(&base.join(part.folder), part, tensors, dtype)?;
    let mut partial = OsString::from(output);
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    remove_folder(&partial)?; // left by an export that was killed
    let done = fill(base, part, &partial, stored).and_then(|report| {
        fs::rename(&partial, output).map_err(|e| Error::io(output, e))?;
        Ok(FolderReport { path: output.into(), ..report })
    });
    if done.is_err() {
        _ = fs::remove_dir_all(&partial); // it may not exist; the first error is the one to report
    }
    done
}

/// Writes everything into a new folder.
fn fill(base: &Path, part: &TrainedPart, folder: &Path, stored: BTreeMap<String, Converted>) -> Result<FolderReport> {
    let own = folder.join(part.folder);
    fs::create_dir_all(&own).map_err(|e| Error::io(&own, e))?;
    let mut index: Map<String, Value> = read_json(base.join(INDEX))?;
    take_components(base, &[part.folder], folder, &mut index)?;

    let mut config: Map<String, Value> = read_json(base.join(part.folder).join(CONFIG))?;
    if let Some(Widened { weight, class }) = part.widened
        && let Some(&[_, channels, ..]) = stored.get(weight).map(|tensor| tensor.shape.as_slice())
    {
        config.insert("in_channels".into(), json!(channels));
        if let Some(class) = class(channels) {
            index.insert("_class_name".into(), json!(class));
        }
    }
    write_json(&own.join(CONFIG), &config)?;
    write_json(&folder.join(INDEX), &index)?;

    let weights = own.join(WEIGHTS);
    write_tensors(&weights, &stored, &BTreeMap::from([("format".to_string(), "pt".to_string())]))?;
    compare(&weights, &stored)?;
    Ok(FolderReport {
        path: folder.into(),
        class: index.get("_class_name").and_then(Value::as_str).unwrap_or("unknown").into(),
        part: part.folder,
        tensors: stored.len(),
        parameters: stored.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum(),
        bytes: fs::metadata(&weights).map_err(|e| Error::io(&weights, e))?.len(),
    })
}

/// One tensor in the shape and dtype of the file.
struct Converted<'a> {
    values: &'a Tensor<1>,
    shape: Vec<usize>,
    dtype: FileDtype,
}

impl Converted<'_> {
    fn data(&self) -> TensorData {
        let mut data = self.values.to_data().convert_dtype(DType::from(self.dtype));
        data.shape = self.shape.clone().into();
        data
    }
}

impl TensorBytes for Converted<'_> {
    fn dtype(&self) -> DType {
        self.dtype.into()
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn bytes(&self) -> Cow<'_, [u8]> {
        self.data().as_bytes().to_vec().into()
    }
}

/// The tensors in the shapes of the files in the part's `folder`.
fn stored<'a>(
    folder: &Path,
    part: &TrainedPart,
    tensors: &'a BTreeMap<String, FlatTensor>,
    dtype: FileDtype,
) -> Result<BTreeMap<String, Converted<'a>>> {
    if !has_weights(folder)? {
        let config = read_json(folder.join(CONFIG))?;
        let own = |(name, FlatTensor { shape, values }): (&String, &'a FlatTensor)| {
            let mut shape = shape.clone();
            if shape.len() == 2 && (part.pointwise)(name, &config) {
                shape.extend([1, 1]);
            }
            (name.clone(), Converted { values, shape, dtype })
        };
        return Ok(tensors.iter().map(own).collect());
    }
    let files = shards(folder)?.iter().map(TensorFile::open).collect::<Result<Vec<_>>>()?;
    let shapes = files.iter().flat_map(|file| {
        file.names().into_iter().filter_map(|name| file.shape(&name).map(<[usize]>::to_vec).map(|shape| (name, shape)))
    });
    let mut shapes: BTreeMap<_, _> = shapes.collect();
    let (mut stored, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, FlatTensor { shape, values }) in tensors {
        let Some(base) = shapes.remove(name) else {
            problems.push(format!("tensor `{name}` is not in the base model"));
            continue;
        };
        let long = |shape: &[usize]| shape.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
        let fits = long(&base) == long(shape);
        let may_widen = part.widened.is_some_and(|widened| name == widened.weight);
        let widened = may_widen && shape.len() == 4 && (shape[0], &shape[2..]) == (base[0], &base[2..]);
        let count = values.dims()[0];
        if !(fits || widened) || shape.iter().product::<usize>() != count {
            problems
                .push(format!("tensor `{name}` has {count} values of shape {shape:?}, the base model's is {base:?}"));
            continue;
        }
        stored.insert(name.clone(), Converted { values, shape: if fits { base } else { shape.clone() }, dtype });
    }
    problems.extend(shapes.keys().map(|name| format!("tensor `{name}` of the base model was not trained")));
    if problems.is_empty() {
        return Ok(stored);
    }
    Err(Error::many(folder, problems).hint("give the model folder that the training started from"))
}

/// Copies the parts of the pipeline other than those that are `new`. Optional parts that `base` lacks are removed from `index`.
pub(super) fn take_components(base: &Path, new: &[&str], folder: &Path, index: &mut Map<String, Value>) -> Result<()> {
    for (name, class) in index.iter_mut() {
        // A part is a pair of library and class, or of `null`s if there is none.
        if new.contains(&name.as_str()) || class.get(0).is_none_or(Value::is_null) {
            continue;
        }
        match base.join(name) {
            from if from.is_dir() => take_folder(&from, &folder.join(name))?,
            _ if OPTIONAL.contains(&name.as_str()) => *class = json!([null, null]),
            from => return Err(Error::file(from, format!("is missing, but `{INDEX}` names it"))),
        }
    }
    if index.get("safety_checker").is_some_and(|class| class.get(0).is_some_and(Value::is_null)) {
        index.insert("requires_safety_checker".into(), json!(false));
    }
    Ok(())
}

fn take_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    for entry in fs::read_dir(from).map_err(|e| Error::io(from, e))? {
        let name = entry.map_err(|e| Error::io(from, e))?.file_name();
        // Resolves symbolic links: the hub's cache consists of them.
        let source = fs::canonicalize(from.join(&name)).map_err(|e| Error::io(from.join(&name), e))?;
        let target = to.join(&name);
        if source.is_dir() {
            take_folder(&source, &target)?;
        } else {
            let weights = target.extension().is_some_and(|kind| kind == "safetensors" || kind == "bin");
            if !(weights && fs::hard_link(&source, &target).is_ok() || copy_config(&source, &target)?) {
                fs::copy(&source, &target).map_err(|e| Error::io(&target, e))?;
            }
        }
    }
    Ok(())
}

/// Copies a configuration without the paths of this machine in it. Returns `false`, and copies nothing, if there are none.
fn copy_config(from: &Path, to: &Path) -> Result<bool> {
    if !to.file_name().is_some_and(|name| name.to_string_lossy().ends_with(CONFIG)) {
        return Ok(false);
    }
    let Ok(mut config) = read_json::<Map<String, Value>>(from) else { return Ok(false) };
    let has_paths = local_paths::remove(&mut config);
    if has_paths {
        put_json(to, &config)?;
    }
    Ok(has_paths)
}

/// Writes a configuration without the paths of this machine in it.
pub(super) fn write_json(path: &Path, value: &Map<String, Value>) -> Result<()> {
    let mut value = value.clone();
    local_paths::remove(&mut value);
    put_json(path, &value)
}

fn put_json(path: &Path, value: &Map<String, Value>) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("it was read from JSON");
    fs::write(path, text + "\n").map_err(|e| Error::io(path, e))
}

/// Reads the file back and compares it.
fn compare(path: &Path, stored: &BTreeMap<String, Converted>) -> Result<()> {
    let file = TensorFile::open(path)?;
    let mut problems = Vec::new();
    for (name, tensor) in stored {
        let found = file.read(name)?;
        if found != tensor.data() {
            problems.push(format!("tensor `{name}` does not match after reading the file back"));
        }
        let values = found.convert_dtype(DType::F32);
        if !values.as_slice::<f32>().is_ok_and(|values| values.iter().all(|v| v.is_finite())) {
            problems.push(format!("tensor `{name}` has values that are not finite in {:?}", DType::from(tensor.dtype)));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::many(path, problems).hint("nothing was written; `dtype f32` holds the largest values"))
}
