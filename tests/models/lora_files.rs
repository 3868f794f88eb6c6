//! LoRA files: what diffusers and kohya's layout hold, read and written, on the files that diffusers wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use kiln::{
    kernels,
    lora::{Denoiser, Format, Init, Lora, LoraConfig, Targets, export, inspect},
    nn::Delta,
    rng::Seed,
    weights::{FileDtype, TensorFile, write_tensors},
};

use crate::support::{
    Golden, goldens,
    lora::{FORMATS, deltas, diffusers_file, each, folders, transformer},
};

/// The largest difference of any layer's change, relative to the largest value of that change.
#[track_caller]
fn distance(one: &Lora, other: &Lora) -> f64 {
    let (one, other) = (deltas(one), deltas(other));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    let pairs = one.into_values().zip(other.into_values()).map(|(a, b)| {
        let size: f32 = a.clone().abs().max().into_scalar();
        let apart: f32 = (a - b).abs().max().into_scalar();
        if apart == 0.0 { 0.0 } else { f64::from(apart / size) }
    });
    pairs.fold(0.0, f64::max)
}

fn keys(path: &Path) -> BTreeSet<String> {
    TensorFile::open(path).unwrap().names().into_iter().collect()
}

fn write(path: &Path, tensors: Vec<(&str, Vec<usize>, f32)>) {
    let one = |(name, shape, value): (&str, Vec<usize>, f32)| {
        (name.to_string(), TensorData::full(shape, value).convert_dtype(DType::F32))
    };
    write_tensors(path, &tensors.into_iter().map(one).collect(), &BTreeMap::new()).unwrap();
}

#[test]
fn the_files_of_diffusers_and_of_kohya_hold_the_same_changes() {
    each(|_, folder| {
        let one = Lora::read(diffusers_file(folder)).unwrap();
        let other = Lora::read(folder.join("kohya.safetensors")).unwrap();
        assert!(distance(&one, &other) < 1e-6, "{}", folder.display());
    });
}

#[test]
fn alpha_over_rank_is_read_from_the_metadata_of_diffusers() {
    each(|_, folder| {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let Some((rank, alpha)) = name.split_once("_r").and_then(|(_, rest)| rest.split_once("_a")) else { return };
        for layer in Lora::read(diffusers_file(folder)).unwrap().layers {
            assert_eq!((layer.rank(), layer.alpha), (rank.parse().unwrap(), alpha.parse().unwrap()), "{}", layer.name);
        }
    });
}

#[test]
fn every_format_reads_back_as_it_was_written() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    each(|_, folder| {
        let lora = Lora::read(diffusers_file(folder)).unwrap();
        for format in FORMATS {
            for (dtype, allowed) in [(FileDtype::F32, 0.0), (FileDtype::Bf16, 0.02), (FileDtype::F16, 0.002)] {
                let report = export(&lora, &path, format, dtype).unwrap();
                assert_eq!(report.layers, lora.layers.len());
                // The scales of the goldens are powers of two, so f32 is exact; sums of fused layers may be in another order.
                assert!(report.difference <= f64::max(allowed, 1e-12), "{format} {dtype:?}: {report}");
                let back = Lora::read(&path).unwrap();
                let apart = distance(&lora, &back);
                assert!(apart <= f64::max(allowed, 1e-6), "{}: {format} {dtype:?}: {apart}", folder.display());
                assert!(back.layers.iter().all(|layer| layer.scale() == 1.0));
            }
        }
    });
}

#[test]
fn written_files_have_the_keys_that_diffusers_and_kohya_write() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    each(|_, folder| {
        let lora = Lora::read(diffusers_file(folder)).unwrap();
        export(&lora, &path, Format::Diffusers, FileDtype::F32).unwrap();
        assert_eq!(keys(&path), keys(&diffusers_file(folder)));
        export(&lora, &path, Format::Kohya, FileDtype::F32).unwrap();
        let kohya = folder.join("kohya.safetensors");
        assert_eq!(keys(&path), keys(&kohya));
        let (ours, theirs) = (TensorFile::open(&path).unwrap(), TensorFile::open(&kohya).unwrap());
        for key in keys(&path) {
            assert_eq!(ours.shape(&key), theirs.shape(&key), "{key}");
        }
    });
}

#[test]
fn metadata_is_kept_and_formats_add_theirs() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    let golden = &goldens("FluxPipeline")[0];
    let mut lora = Lora::read(diffusers_file(&folders(golden)[0])).unwrap();
    lora.metadata.extend([("dataset".to_string(), "cats".to_string()), ("ss_network_dim".into(), "7".into())]);
    export(&lora, &path, Format::Kohya, FileDtype::F32).unwrap();
    let back = Lora::read(&path).unwrap();
    assert_eq!((back.metadata["dataset"].as_str(), back.metadata["ss_network_dim"].as_str()), ("cats", "7"));
    assert_eq!(back.metadata["ss_network_module"], "networks.lora_flux");
    export(&back, &path, Format::Diffusers, FileDtype::F32).unwrap();
    let metadata = TensorFile::open(&path).unwrap().metadata();
    assert_eq!((metadata["dataset"].as_str(), metadata["format"].as_str()), ("cats", "pt"));
}

/// Unusual ranks, scales and targets: some layers of each fused group, of different ranks.
fn uneven(golden: &Golden) -> Lora {
    let patterns = [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_v",
        "transformer_blocks.0.attn.add_k_proj",
        "single_transformer_blocks.0.attn.to_k",
        "single_transformer_blocks.*.proj_mlp",
        "single_transformer_blocks.0.norm.linear",
        "norm1_context.linear",
        "norm_out.linear",
        "proj_out",
    ];
    let targets = Targets::Patterns(patterns.map(String::from).to_vec());
    let config = LoraConfig { targets, init: Init::Kaiming, ..LoraConfig::default() };
    let mut lora =
        Lora::init(&config, Denoiser::Transformer, Seed(5), &transformer(golden).shapes(), &Device::flex()).unwrap();
    for (i, layer) in lora.layers.iter_mut().enumerate() {
        let rank = 1 + i % 5;
        layer.a = layer.a.clone().narrow(0, 0, rank);
        layer.b = Tensor::random([layer.b.dims()[0], rank], Distribution::Normal(0.0, 1e-3), &Device::flex());
        layer.alpha = 0.3 * (i + 1) as f64;
    }
    // The model's proj_out alone, not those of the blocks, which end in the same name.
    lora.layers.retain(|layer| !layer.name.ends_with(".proj_out"));
    lora
}

#[test]
fn uneven_ranks_scales_and_partly_trained_groups_survive_every_format() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    for golden in goldens("FluxPipeline") {
        let lora = uneven(&golden);
        for format in FORMATS {
            export(&lora, &path, format, FileDtype::F32).unwrap();
            let back = Lora::read(&path).unwrap();
            assert!(distance(&lora, &back) < 1e-6, "{format}");
            let ranks =
                |lora: &Lora| lora.layers.iter().map(|l| (l.name.clone(), l.rank())).collect::<BTreeMap<_, _>>();
            assert_eq!(ranks(&lora), ranks(&back), "{format}");
        }
    }
}

#[test]
fn all_spellings_of_one_adapter_are_read_alike() {
    let temporary = tempfile::tempdir().unwrap();
    let golden = &goldens("FluxPipeline")[0];
    let folder = folders(golden).pop().unwrap();
    let source = TensorFile::open(diffusers_file(&folder)).unwrap();
    let lora = Lora::read(source.path()).unwrap();
    let scale = lora.layers[0].scale();
    let spell = |name: &str, rename: &dyn Fn(&str) -> String, metadata: &BTreeMap<String, String>, alpha: bool| {
        let mut tensors = BTreeMap::new();
        for key in source.names() {
            let data = source.read(&key).unwrap();
            if alpha && key.contains("lora_A") {
                let alpha = TensorData::new(vec![data.shape.as_slice()[0] as f32 * scale as f32], Vec::<usize>::new());
                tensors.insert(rename(&key).split(".lora").next().unwrap().to_string() + ".alpha", alpha);
            }
            tensors.insert(rename(&key), data);
        }
        let path = temporary.path().join(name);
        write_tensors(&path, &tensors, metadata).unwrap();
        path
    };
    let none = BTreeMap::new();
    let bare = |key: &str| key.strip_prefix("transformer.").unwrap().to_string();
    let down = |key: &str| key.replace("lora_A", "lora_down").replace("lora_B", "lora_up");
    let files = [
        spell("bare", &bare, &none, true),
        spell("down", &|key| down(key), &none, true),
        spell("dots", &|key| key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"), &none, true),
        spell("named", &|key| key.replace(".weight", ".default.weight"), &source.metadata(), false),
        spell("comfy", &|key| format!("diffusion_model.{}", bare(key)), &none, true),
        spell(
            "onetrainer",
            &|key| {
                let (module, rest) = key.split_once(".lora").unwrap();
                format!("lora_transformer_{}{}", bare(module).replace('.', "_"), down(&format!(".lora{rest}")))
            },
            &none,
            true,
        ),
    ];
    for path in files {
        assert!(distance(&lora, &Lora::read(&path).unwrap()) < 1e-6, "{}", path.display());
    }
    // PEFT keeps the scale in a file of its own.
    let peft = spell("peft.safetensors", &|key| format!("base_model.model.{}", bare(key)), &none, false);
    let rank = lora.layers[0].rank();
    let alpha = rank as f64 * scale;
    let config = format!("{{\"r\": {rank}, \"lora_alpha\": {alpha}, \"use_rslora\": false}}");
    std::fs::write(temporary.path().join("adapter_config.json"), config).unwrap();
    assert!(distance(&lora, &Lora::read(&peft).unwrap()) < 1e-6);
    std::fs::remove_file(temporary.path().join("adapter_config.json")).unwrap();
    assert!(Lora::read(&peft).unwrap().layers.iter().all(|layer| layer.scale() == 1.0), "no alpha means scale 1");
}

#[test]
fn wrappers_and_shares_of_fused_layers_are_read_as_what_they_stand_for() {
    let temporary = tempfile::tempdir().unwrap();
    let golden = &goldens("FluxPipeline")[0];
    let source = diffusers_file(&folders(golden)[0]);
    let lora = Lora::read(&source).unwrap();
    let source = TensorFile::open(source).unwrap();
    let renamed = |name: &str, rename: &dyn Fn(&str, &str) -> String| {
        let mut tensors = BTreeMap::new();
        for layer in &lora.layers {
            for (matrix, spelling) in [("lora_A", "lora_down"), ("lora_B", "lora_up")] {
                let data = source.read(&format!("transformer.{}.{matrix}.weight", layer.name)).unwrap();
                tensors.insert(rename(&layer.name, spelling), data);
            }
            let alpha = TensorData::new(vec![layer.alpha as f32], Vec::<usize>::new());
            let module = rename(&layer.name, "").replace("..weight", "");
            tensors.insert(format!("{module}.alpha"), alpha);
        }
        let path = temporary.path().join(name);
        write_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
        path
    };
    for prefix in ["transformer.base_model.model.", "model.diffusion_model.", "base_model.model.transformer._orig_mod."]
    {
        let path = renamed(prefix, &|layer, matrix| format!("{prefix}{layer}.{matrix}.weight"));
        assert!(distance(&lora, &Lora::read(&path).unwrap()) < 1e-6, "{prefix}");
    }
    // OneTrainer's older files number the layers that a module of the original code fuses.
    let numbered = |layer: &str| {
        let shares = [
            ("attn.to_q", "img_attn.qkv.0"),
            ("attn.to_k", "img_attn.qkv.1"),
            ("attn.to_v", "img_attn.qkv.2"),
            ("attn.add_q_proj", "txt_attn.qkv.0"),
            ("attn.add_k_proj", "txt_attn.qkv.1"),
            ("attn.add_v_proj", "txt_attn.qkv.2"),
        ];
        let single = [("attn.to_q", "linear1.0"), ("attn.to_k", "linear1.1"), ("attn.to_v", "linear1.2")];
        let (table, block): (&[_], _) = match layer.strip_prefix("single_transformer_blocks.") {
            Some(rest) => (&single, format!("single_blocks.{rest}")),
            None => (&shares, layer.replace("transformer_blocks", "double_blocks")),
        };
        let found = table.iter().find(|(own, _)| block.ends_with(own));
        found.map_or_else(|| layer.to_string(), |(own, share)| block.replace(own, share))
    };
    let path = renamed("numbered", &|layer, matrix| format!("transformer.{}.{matrix}.weight", numbered(layer)));
    assert!(
        TensorFile::open(&path).unwrap().names().iter().any(|name| name.contains("double_blocks.0.img_attn.qkv.1"))
    );
    assert!(distance(&lora, &Lora::read(&path).unwrap()) < 1e-6);
}

#[test]
fn xlabs_files_change_the_image_stream_by_their_first_matrices() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("xlabs.safetensors");
    let (width, rank) = (6, 2);
    let block = "double_blocks.3.processor";
    let mut tensors = vec![
        (format!("{block}.qkv_lora1.down.weight"), vec![rank, width], 1.0),
        (format!("{block}.qkv_lora1.up.weight"), vec![3 * width, rank], 1.0),
        (format!("{block}.proj_lora2.down.weight"), vec![rank, width], 2.0),
        (format!("{block}.proj_lora2.up.weight"), vec![width, rank], 1.0),
    ];
    let block = "single_blocks.4.processor";
    tensors.extend([
        (format!("{block}.qkv_lora.down.weight"), vec![rank, width], 3.0),
        (format!("{block}.qkv_lora.up.weight"), vec![3 * width, rank], 1.0),
        (format!("{block}.proj_lora.down.weight"), vec![rank, 5 * width], 1.0),
        (format!("{block}.proj_lora.up.weight"), vec![width, rank], 1.0),
    ]);
    write(&path, tensors.iter().map(|(name, shape, value)| (name.as_str(), shape.clone(), *value)).collect());
    let lora = Lora::read(&path).unwrap();
    let names: Vec<_> = lora.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "single_transformer_blocks.4.attn.to_k",
            "single_transformer_blocks.4.attn.to_q",
            "single_transformer_blocks.4.attn.to_v",
            "single_transformer_blocks.4.proj_out",
            "transformer_blocks.3.attn.to_add_out",
            "transformer_blocks.3.attn.to_k",
            "transformer_blocks.3.attn.to_q",
            "transformer_blocks.3.attn.to_v",
        ]
    );
    assert!(lora.layers.iter().all(|layer| layer.scale() == 1.0));
    assert_eq!(inspect(&path).unwrap().lora.unwrap().format, "XLabs");
}

#[test]
fn full_changes_and_fused_kronecker_products_come_apart_by_rows() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("fused.safetensors");
    let width = 6;
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex());
    let dense = random([3 * width, width]);
    // Blocks of three rows end where a layer does, blocks of nine do not.
    for (left, right) in [([6, 2], [3, 3]), ([2, 2], [9, 3])] {
        let (left, right) = (random(left), random(right));
        let module = "lora_unet_double_blocks_0_img_attn_qkv";
        let tensors = BTreeMap::from([
            (format!("{module}.lokr_w1"), left.to_data()),
            (format!("{module}.lokr_w2"), right.to_data()),
            ("lora_unet_double_blocks_0_txt_attn_qkv.diff".to_string(), dense.to_data()),
        ]);
        write_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let lora = Lora::read(&path).unwrap();
        assert!(lora.layers.is_empty() && lora.foreign.len() == 6);
        let whole = Delta::Kronecker { left, right }.dense();
        let names = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"];
        for (i, name) in names.into_iter().enumerate() {
            let layer = lora.foreign.iter().find(|l| l.name.ends_with(name)).unwrap();
            assert_eq!((layer.delta.outputs(), layer.delta.inputs()), (width, Some(width)));
            assert_eq!(layer.scale, 1.0);
            let rows = if i < 3 { whole.clone() } else { dense.clone() }.narrow(0, i % 3 * width, width);
            let apart: f32 = (layer.delta.dense() - rows).abs().max().into_scalar();
            assert!(apart < 1e-5, "{name}: {apart}");
        }
    }
    let text = export(&Lora::read(&path).unwrap(), &path, Format::Diffusers, FileDtype::F32).unwrap_err().to_string();
    assert!(text.contains("no layers"), "{text}");
}

#[test]
fn fp8_files_are_read() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("eight.safetensors");
    let module = "transformer.transformer_blocks.0.attn.to_q";
    let header = format!(
        r#"{{"{module}.lora_A.weight":{{"dtype":"F8_E4M3","shape":[1,2],"data_offsets":[0,2]}},"{module}.lora_B.weight":{{"dtype":"F8_E5M2","shape":[2,1],"data_offsets":[2,4]}}}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0x38, 0xc4, 0x3c, 0x41]); // 1, -3 and 1, 2.5
    std::fs::write(&path, bytes).unwrap();
    let delta = Lora::read(&path).unwrap().layers[0].delta().into_data().into_vec::<f32>().unwrap();
    assert_eq!(delta, [1.0, -3.0, 2.5, -7.5]);
}

#[test]
fn the_folder_of_an_adapter_is_read_as_its_file() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let text = Lora::read(folder).unwrap_err().to_string();
    assert!(text.contains("adapter_model.safetensors"), "{text}");
    std::fs::write(folder.join("adapter_model.bin"), "").unwrap();
    let text = Lora::read(folder).unwrap_err().to_string();
    assert!(text.contains("pickle") && text.contains("safe_serialization"), "{text}");
    let source = diffusers_file(&folders(&goldens("FluxPipeline")[0])[0]);
    let lora = Lora::read(&source).unwrap();
    for name in ["some.safetensors", "adapter_model.safetensors"] {
        std::fs::copy(&source, folder.join(name)).unwrap();
        assert!(distance(&lora, &Lora::read(folder).unwrap()) == 0.0);
        assert!(inspect(folder).unwrap().lora.is_some());
    }
    std::fs::rename(folder.join("adapter_model.safetensors"), folder.join("other.safetensors")).unwrap();
    let text = Lora::read(folder).unwrap_err().to_string();
    assert!(text.contains("2 safetensors files") && text.contains("other.safetensors"), "{text}");
}

#[test]
fn a_fused_layer_with_a_dense_up_matrix_shares_its_down_matrix() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("dense.safetensors");
    let module = "lora_unet_single_blocks_0_linear1";
    let (down, up) = (format!("{module}.lora_down.weight"), format!("{module}.lora_up.weight"));
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex());
    let (width, rank) = (6, 4);
    let (a, b) = (random([rank, width]), random([7 * width, rank]));
    let alpha = TensorData::new(vec![2f32], Vec::<usize>::new());
    let tensors = BTreeMap::from([(down, a.to_data()), (up, b.to_data()), (format!("{module}.alpha"), alpha)]);
    write_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
    let lora = Lora::read(&path).unwrap();
    let whole = kernels::matmul(b, a) * 0.5;
    let mut top = 0;
    for (suffix, rows) in [("attn.to_q", width), ("attn.to_k", width), ("attn.to_v", width), ("proj_mlp", 4 * width)] {
        let layer = lora.layers.iter().find(|l| l.name == format!("single_transformer_blocks.0.{suffix}")).unwrap();
        let apart: f32 = (layer.delta() - whole.clone().narrow(0, top, rows)).abs().max().into_scalar();
        assert!(apart < 1e-5, "{suffix}: {apart}");
        top += rows;
    }
    // And it can be written again, each layer now with its own block.
    for format in FORMATS {
        export(&lora, &path, format, FileDtype::F32).unwrap();
        assert!(distance(&lora, &Lora::read(&path).unwrap()) < 1e-6);
    }
}

#[test]
fn changes_of_biases_are_read_alone_and_beside_changes_of_weights() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("biases.safetensors");
    let values = |count: usize, start: f32| (0..count).map(|i| start + i as f32).collect::<Vec<_>>();
    let vector = |count, start| TensorData::new(values(count, start), [count]);
    let matrix = |rows: usize, columns: usize| TensorData::new(vec![1f32; rows * columns], [rows, columns]);
    let q = "transformer.transformer_blocks.0.attn.to_q";
    let tensors = [
        // Only biases: of fused layers, and of the module whose halves are swapped.
        ("lora_unet_double_blocks_0_txt_attn_qkv.diff_b".to_string(), vector(9, 0.0)),
        ("lora_unet_single_blocks_0_linear1.diff_b".to_string(), vector(14, 100.0)),
        ("lora_unet_final_layer_adaLN_modulation_1.diff_b".to_string(), vector(4, 200.0)),
        // Beside a low-rank pair: PEFT's, which has the scale of the pair, here 2, and another, which has none.
        (format!("{q}.lora_A.weight"), matrix(1, 3)),
        (format!("{q}.lora_B.weight"), matrix(3, 1)),
        (format!("{q}.lora_B.bias"), vector(3, 300.0)),
        (format!("{q}.alpha"), TensorData::new(vec![2f32], Vec::<usize>::new())),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight".to_string(), matrix(1, 3)),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight".to_string(), matrix(3, 1)),
        ("lora_unet_double_blocks_0_img_attn_proj.alpha".to_string(), TensorData::new(vec![2f32], Vec::<usize>::new())),
        ("lora_unet_double_blocks_0_img_attn_proj.diff_b".to_string(), vector(3, 400.0)),
    ];
    write_tensors(&path, &tensors.into(), &BTreeMap::new()).unwrap();
    let lora = Lora::read(&path).unwrap();
    let scales: Vec<_> = lora.layers.iter().map(|layer| (layer.name.as_str(), layer.scale())).collect();
    assert_eq!(scales, [("transformer_blocks.0.attn.to_out.0", 2.0), ("transformer_blocks.0.attn.to_q", 2.0)]);
    let mut biases = BTreeMap::new();
    for layer in &lora.foreign {
        let Delta::Bias(bias) = &layer.delta else { panic!("`{}` changes a weight", layer.name) };
        let bias = (bias.clone() * layer.scale).into_data().into_vec::<f32>().unwrap();
        assert_eq!((layer.delta.outputs(), layer.delta.inputs()), (bias.len(), None));
        biases.insert(layer.name.as_str(), bias);
    }
    let expected = BTreeMap::from([
        ("norm_out.linear", vec![202.0, 203.0, 200.0, 201.0]),
        ("single_transformer_blocks.0.attn.to_k", values(2, 102.0)),
        ("single_transformer_blocks.0.attn.to_q", values(2, 100.0)),
        ("single_transformer_blocks.0.attn.to_v", values(2, 104.0)),
        ("single_transformer_blocks.0.proj_mlp", values(8, 106.0)),
        ("transformer_blocks.0.attn.add_k_proj", values(3, 3.0)),
        ("transformer_blocks.0.attn.add_q_proj", values(3, 0.0)),
        ("transformer_blocks.0.attn.add_v_proj", values(3, 6.0)),
        ("transformer_blocks.0.attn.to_out.0", values(3, 400.0)),
        ("transformer_blocks.0.attn.to_q", vec![600.0, 602.0, 604.0]),
    ]);
    assert_eq!(biases, expected);
    let kinds = inspect(&path).unwrap().lora.unwrap().kinds;
    assert_eq!(kinds, BTreeMap::from([("LoRA".to_string(), 2), ("bias change".to_string(), 3)]));
}

#[test]
fn files_that_cannot_be_applied_whole_are_refused_with_all_reasons() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("bad.safetensors");
    let q = "transformer.transformer_blocks.0.attn.to_q";
    let refuse = |extra: Vec<(&str, Vec<usize>)>, expected: &[&str]| {
        let (a, b) = (format!("{q}.lora_A.weight"), format!("{q}.lora_B.weight"));
        let mut tensors = vec![(a.as_str(), vec![2, 4], 1.0), (b.as_str(), vec![4, 2], 1.0)];
        tensors.extend(extra.into_iter().map(|(name, shape)| (name, shape, 1.0)));
        write(&path, tensors);
        let text = Lora::read(&path).unwrap_err().to_string();
        for part in expected.iter().chain(&["bad.safetensors"]) {
            assert!(text.contains(part), "`{part}` in {text}");
        }
    };
    refuse(
        vec![
            ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", vec![2, 4]),
            ("transformer.transformer_blocks.0.attn.to_q.bias", vec![4]),
            ("transformer.transformer_blocks.0.attn.to_k.lora_A.weight", vec![2, 4]),
            ("transformer.transformer_blocks.0.attn.to_v.oft_blocks", vec![2, 4]),
            ("transformer.transformer_blocks.0.attn.to_v.lokr_w1", vec![2, 4]),
            ("transformer.transformer_blocks.0.ff.net.2.hada_w1_a", vec![2, 4]),
            ("transformer.transformer_blocks.0.norm1.diff", vec![2]),
        ],
        &[
            "7 problems",
            "second CLIP text encoder",
            "replace biases",
            "attn.to_k` has only one",
            "OFT",
            "attn.to_v` lacks a factor",
            "ff.net.2` lacks one of the four",
            "norm1` changes something other than the weight",
        ],
    );
    refuse(vec![("transformer.transformer_blocks.0.attn.to_q.dora_scale", vec![1, 4])], &["scales the columns"]);
    refuse(
        vec![("lora_unet_single_blocks_0_linear9.lora_down.weight", vec![2, 4])],
        &["linear9` is not a layer of FLUX"],
    );
    let bias = |name: &str| format!("{q}.{name}");
    refuse(vec![(&bias("diff_b"), vec![5])], &["changes 4 outputs, but the biases of 5"]);
    refuse(vec![(&bias("diff_b"), vec![4, 1])], &["[4, 1], which is not a vector"]);
    refuse(vec![(&bias("diff_b"), vec![4]), (&bias("lora_B.bias"), vec![4])], &["changes its bias twice"]);
    let fused = "lora_unet_double_blocks_0_img_attn_qkv";
    let (down, up) = (format!("{fused}.lora_down.weight"), format!("{fused}.lora_up.weight"));
    refuse(vec![(&down, vec![3, 4]), (&up, vec![13, 3])], &["13 rows"]);
    refuse(vec![(&down, vec![3, 4]), (&up, vec![12, 3])], &["a second time"]);
    refuse(vec![(&down, vec![3, 4]), (&up, vec![12, 6])], &["different rank"]);
    refuse(
        vec![("a.lora_down.weight", vec![2, 4, 3]), ("a.lora_up.weight", vec![4, 2, 1])],
        &["[2, 4, 3]", "no layer kiln knows"],
    );
    refuse(
        vec![
            ("lora_unet_down_blocks_0.lora_down.weight", vec![2, 4]),
            ("lora_unet_down_blocks_0.lora_up.weight", vec![4, 2]),
        ],
        &["not a layer of FLUX"],
    );
    let mut lora = Lora::read(diffusers_file(&folders(&goldens("FluxPipeline")[0])[0])).unwrap();
    lora.layers[0].b = lora.layers[0].b.clone() * f64::NAN;
    let text = export(&lora, &path, Format::Kohya, FileDtype::F32).unwrap_err().to_string();
    assert!(text.contains("not finite"), "{text}");
    lora.layers[0].name = "transformer_blocks.0.attn.norm_q".into();
    let text = export(&lora, &path, Format::ComfyUi, FileDtype::F32).unwrap_err().to_string();
    assert!(text.contains("attn.norm_q` has no name"), "{text}");
}

#[test]
fn foreign_truncated_and_missing_files_are_errors() {
    let temporary = tempfile::tempdir().unwrap();
    let golden = &goldens("FluxPipeline")[0];
    let source = diffusers_file(&folders(golden)[0]);
    let path = temporary.path().join("cut.safetensors");
    let bytes = std::fs::read(&source).unwrap();
    for keep in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        assert!(Lora::read(&path).unwrap_err().to_string().contains("cut.safetensors"));
        assert!(inspect(&path).is_err());
    }
    let text = Lora::read(golden.folder.join("golden.json")).unwrap_err().to_string();
    assert!(text.contains("is a JSON file"), "{text}");
    let vae = golden.folder.join("golden.safetensors");
    assert!(Lora::read(&vae).is_err());
    write(&path, vec![("conv_in.weight", vec![2, 4], 1.0), ("conv_in.bias", vec![2], 1.0)]);
    assert!(Lora::read(&path).unwrap_err().to_string().contains("holds no LoRA"));
    assert!(Lora::read(temporary.path().join("none.safetensors")).is_err());
}

#[test]
fn inspection_says_what_a_file_is() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    for golden in goldens("FluxPipeline") {
        for (folder, kind) in [
            ("transformer", "FLUX transformer"),
            ("vae", "VAE"),
            ("text_encoder", "CLIP text encoder"),
            ("text_encoder_2", "T5 text encoder"),
        ] {
            for entry in std::fs::read_dir(golden.model.join(folder)).unwrap().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
                    let inspection = inspect(entry.path()).unwrap();
                    assert!(inspection.kind.starts_with(kind), "{inspection}");
                    assert!(inspection.lora.is_none() && inspection.parameters > 0);
                }
            }
        }
        for folder in folders(&golden) {
            let lora = Lora::read(diffusers_file(&folder)).unwrap();
            let rank = lora.layers[0].rank();
            for (format, name) in FORMATS.into_iter().zip(["diffusers", "kohya", "ComfyUI"]) {
                export(&lora, &path, format, FileDtype::Bf16).unwrap();
                let inspection = inspect(&path).unwrap();
                let summary = inspection.lora.as_ref().unwrap();
                assert_eq!((inspection.kind.as_str(), summary.format.as_str()), ("LoRA", name));
                assert!(summary.ranks.contains_key(&rank), "{inspection}");
                assert!(summary.targets["transformer_blocks"].contains_key("attn.to_q"), "{inspection}");
                assert!(summary.problems.is_empty() && inspection.dtypes.contains_key("BF16"), "{inspection}");
                let text = inspection.to_string();
                assert!(text.contains("attn.to_out.0") && text.contains(name), "{text}");
                assert!(serde_json::to_string(&inspection).unwrap().contains("\"ranks\""));
            }
        }
    }
}
