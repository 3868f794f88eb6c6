//! Out of device memory: the work is repeated at the next memory level, or there is one error. The failure is injected.

use std::{
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use kiln::{
    error::{Error, Result},
    generation::{BatchRequest, Choices, GenerateRequest, SamplingOptions, batch, generate},
    memory::{Level, LevelChoice, MemoryConfig, attempt, fail_at},
};

use crate::support::{
    program::{MODEL, workshop},
    sampling::draw,
};

fn images(paths: &[PathBuf]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn request(output: &Path, level: LevelChoice) -> GenerateRequest {
    GenerateRequest {
        model: MODEL.into(),
        sampling: SamplingOptions { steps: Some(2), ..SamplingOptions::default() },
        prompts: vec!["a cat".into(), "a house".into()],
        width: Some(64),
        height: Some(64),
        count: 1,
        batch_size: Some(1),
        output: output.into(),
        memory: MemoryConfig { level, ..MemoryConfig::default() },
        ..GenerateRequest::default()
    }
}

#[test]
fn images_are_those_of_a_device_that_had_the_memory() {
    let (workshop, device) = (workshop("exhausted"), Device::flex());
    let made = |name: &str| generate(&request(&workshop.join(name), LevelChoice::Auto), &device);
    let expected = images(&made("plain").unwrap());
    assert_eq!(expected.len(), 2);
    // Wherever it fails, and as often as there are lower levels.
    for (stage, before, times) in
        [("text", 0, 1), ("load", 0, 1), ("denoise", 1, 3), ("decode", 0, 2), ("decode", 1, 1)]
    {
        (0..times).for_each(|time| fail_at(stage, if time == 0 { before } else { 0 }));
        let files = made(&format!("{stage}-{before}")).unwrap();
        assert!(images(&files) == expected, "{stage} {before}");
    }
    // Once more than that, and where the level is named, it is an error.
    (0..4).for_each(|_| fail_at("denoise", 0));
    let error = made("never").unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    fail_at("denoise", 0);
    let error = generate(&request(&workshop.join("named"), LevelChoice::Fixed(Level::None)), &device).unwrap_err();
    let said = error.to_string();
    assert!(error.is_out_of_memory() && said.contains("1.00 GiB more requested"), "{said}");
    assert!(said.contains("hint: lower `memory.level`"), "{said}");
}

#[test]
fn a_folder_is_finished_at_the_next_level() {
    let (workshop, device) = (workshop("exhausted_batch"), Device::flex());
    let folder = workshop.join("images");
    std::fs::create_dir_all(&folder).unwrap();
    for number in 0..3 {
        draw(&folder.join(format!("{number}.png")), 64, 64, number);
    }
    let made = |name: &str| {
        let output = workshop.join(name);
        let report = batch(
            &BatchRequest {
                folder: folder.clone(),
                image: None,
                choices: Choices { models: vec![MODEL.into()], prompts: vec!["a cat".into()], strengths: vec![0.5] },
                loras: Default::default(),
                sampling: SamplingOptions { steps: Some(2), ..SamplingOptions::default() },
                seed: 0,
                batch_size: 2,
                output: output.clone(),
                memory: MemoryConfig::default(),
            },
            &device,
        );
        assert_eq!(report.unwrap().pictures.len(), 3, "{name}");
        images(&[0, 1, 2].map(|number| output.join(format!("{number}.png"))))
    };
    let expected = made("plain");
    for stage in ["encode", "denoise", "decode"] {
        fail_at(stage, 1);
        assert!(made(stage) == expected, "{stage}");
    }
}

#[test]
fn running_out_of_device_memory_is_an_error_that_names_the_request_and_any_other_panic_stays_one() {
    let device = Device::flex();
    for message in [
        "out of device memory allocating 536870912 bytes\n   0: main",
        "ServerUnhealthy { errors: [Io(OutOfMemory { size: 536870912, backtrace: BackTrace })] }",
        "memory pool capacity exceeded: failed to reserve 536870912 bytes, pool is capped at 7 bytes",
        "can't allocate buffer of size: 536870912\n",
    ] {
        let failed: Result<()> = attempt(&device, || panic!("{message}"));
        let error = failed.unwrap_err();
        assert!(error.is_out_of_memory());
        let said = error.to_string();
        assert!(said.starts_with("device memory: none left (0.50 GiB more requested"), "{said}");
        assert!(said.contains("`memory.level`"), "{said}");
    }
    assert_eq!(attempt(&device, || Ok(3)).unwrap(), 3);
    assert!(!attempt(&device, || Err::<(), _>(Error::setting("a", "b"))).unwrap_err().is_out_of_memory());
    let other = catch_unwind(|| attempt(&Device::flex(), || -> Result<()> { panic!("index out of bounds") }));
    assert_eq!(other.unwrap_err().downcast_ref::<&str>(), Some(&"index out of bounds"));
}
