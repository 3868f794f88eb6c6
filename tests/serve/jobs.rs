//! Jobs without HTTP: acceptance, order, cancelling, adapters, results, and what remains after a stop.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use burn::tensor::Device;
use kiln::{
    memory::Bytes,
    serve::{
        CancelOutcome, Missing, Refusal, Service,
        config::{LOCAL, LimitsConfig, ResultsConfig},
        job::{Event, FileBytes, JobRequest, Numbered, Status},
    },
    weights::FileDtype,
};
use tokio_stream::{Stream, StreamExt};

use crate::support::serving::{
    NANO, adapter, adapters, config, images, layers, metric, model, request, root, start, submit, until, wait,
    with_loras,
};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// All events of a stream until it ends.
fn all(stream: impl Stream<Item = Numbered>) -> Vec<Numbered> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), stream.collect()).await }).unwrap()
}

/// A job that keeps the engine busy until it is cancelled.
fn long_job(service: &Service) -> kiln::serve::job::JobId {
    let id = submit(service, JobRequest { width: Some(64), height: Some(64), ..request("a red apple", 1, 200) });
    until("the long job runs", || service.job(id, LOCAL).unwrap().step > 0);
    id
}

fn png(width: u32, height: u32) -> FileBytes {
    let image =
        image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 3) as u8, (y * 5) as u8, (x + y) as u8]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    FileBytes(bytes.into_inner())
}

#[test]
fn a_job_is_told_from_its_acceptance_to_its_images() {
    let state = folder();
    let service = start(config(state.path()));
    let mine = JobRequest { count: 2, previews: true, ..request("a red apple", 7, 16) };
    let id = submit(&service, mine);
    let told = all(service.events(id, LOCAL, 0).unwrap());
    let names: Vec<_> = told.iter().map(|told| told.event.name()).collect();
    // The engine may have begun before anyone listened.
    assert!(["queued", "started"].contains(&names[0]) && *names.last().unwrap() == "completed", "{names:?}");
    assert!(told.windows(2).all(|pair| pair[0].number < pair[1].number));
    let steps: Vec<_> = told
        .iter()
        .filter_map(|told| match told.event {
            Event::Progress { step, of, .. } => Some((step, of)),
            _ => None,
        })
        .collect();
    assert!(steps.windows(2).all(|pair| pair[0].0 < pair[1].0) && steps.last() == Some(&(32, 32)), "{steps:?}");
    let previews: Vec<_> = told
        .iter()
        .filter_map(|told| match &told.event {
            Event::Preview { image, png, .. } => Some((*image, image::load_from_memory(&png.0).unwrap())),
            _ => None,
        })
        .collect();
    assert!([0, 1].iter().all(|number| previews.iter().filter(|(image, _)| image == number).count() >= 4));
    assert!(previews.iter().all(|(_, preview)| preview.width() == 4), "a pixel for each latent pixel");

    let job = wait(&service, id);
    assert_eq!((job.status, job.step, job.of, job.attempts), (Status::Completed, 32, 32, 1));
    assert_eq!(job.images.iter().map(|image| (image.seed, image.width)).collect::<Vec<_>>(), [(7, 32), (8, 32)]);
    let files = images(&service, id);
    assert!(files[0] != files[1] && files.iter().zip(&job.images).all(|(file, made)| file.len() as u64 == made.bytes));
    let single = submit(&service, request("a red apple", 8, 16));
    assert!(images(&service, single)[0] == files[1], "the second image is that of the next seed");

    // A later listener gets the events that still matter, from its position.
    let later = all(service.events(id, LOCAL, 0).unwrap());
    assert!(later.len() < told.len() && later.last() == told.last());
    assert_eq!(all(service.events(id, LOCAL, told.last().unwrap().number).unwrap()), []);
    assert!(matches!(service.job(id, "somebody"), Err(Missing::Unknown)), "jobs are their owner's");
    assert!(matches!(service.image(id, LOCAL, 2), Err(Missing::Unknown)));
}

#[test]
fn what_a_request_leaves_open_is_filled_in_and_what_is_wrong_is_named() {
    let state = folder();
    let mut config = config(state.path());
    config.models.push(model("edits", "tests/fixtures/ip2p"));
    config.limits = LimitsConfig { images: 4, steps: 50, pixels: 128 * 128, ..LimitsConfig::default() };
    let service = start(config);
    let id = submit(&service, JobRequest { steps: Some(1), ..JobRequest::new("a key") });
    let job = wait(&service, id);
    assert_eq!(
        (job.request.width, job.request.height, job.request.model.as_deref()),
        (Some(64), Some(64), Some("nano"))
    );
    assert_eq!(job.images[0].seed, job.request.seed.unwrap());

    let plain = || request("a key", 1, 4);
    let edit = |request: JobRequest| JobRequest { model: Some("edits".into()), ..request };
    let wrong: Vec<(&str, JobRequest)> = vec![
        ("count", JobRequest { count: 5, ..plain() }),
        ("count", JobRequest { count: 0, ..plain() }),
        ("steps", JobRequest { steps: Some(51), ..plain() }),
        ("width", JobRequest { width: Some(33), ..plain() }),
        ("width", JobRequest { width: Some(256), height: Some(256), ..plain() }),
        ("model", JobRequest { model: Some("none".into()), ..plain() }),
        ("guidance", JobRequest { guidance: Some(f64::NAN), ..plain() }),
        ("prompt", JobRequest::new("x".repeat(20_000))),
        ("loras.name", with_loras(plain(), &[("none", 1.0)])),
        ("loras.scale", with_loras(plain(), &[("none", f64::INFINITY)])),
        ("image", JobRequest { image: Some(FileBytes(b"no image".to_vec())), ..plain() }),
        ("image", JobRequest { image: Some(png(200, 200)), ..plain() }),
        ("mask", JobRequest { mask: Some(png(32, 32)), ..plain() }),
        ("mask", JobRequest { mask: Some(png(16, 32)), image: Some(png(32, 32)), ..plain() }),
        ("strength", JobRequest { strength: Some(0.5), ..plain() }),
        ("strength", JobRequest { strength: Some(1.5), image: Some(png(32, 32)), ..plain() }),
        ("image", edit(plain())),
        ("mask", edit(JobRequest { image: Some(png(32, 32)), mask: Some(png(32, 32)), ..plain() })),
        ("scheduler", JobRequest { scheduler: Some(kiln::schedulers::SchedulerName::Ddim), ..plain() }),
    ];
    for (field, request) in wrong {
        match service.submit(request, LOCAL, None) {
            Err(Refusal::Invalid(e)) => assert!(e.message().starts_with(&format!("`{field}`")), "{field}: {e}"),
            other => panic!("{field}: {other:?}"),
        }
    }
    let edited = submit(&service, edit(JobRequest { image: Some(png(40, 24)), width: None, height: None, ..plain() }));
    let (job, files) = (wait(&service, edited), images(&service, edited));
    assert_eq!((job.request.width, job.request.height, job.has_image), (Some(40), Some(24), true));
    assert_eq!(image::load_from_memory(&files[0]).unwrap().width(), 40);
    let changed = |mask: Option<FileBytes>| {
        images(
            &service,
            submit(&service, JobRequest { image: Some(png(32, 32)), mask, strength: Some(0.5), ..plain() }),
        )
    };
    let white = image::GrayImage::from_fn(32, 32, |x, _| image::Luma([if x < 16 { 255 } else { 0 }]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    white.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    assert!(changed(None) != changed(Some(FileBytes(bytes.into_inner()))));
    assert!(service.models().iter().all(|model| model.loaded), "both fit");
}

#[test]
fn a_key_is_one_job_whoever_asks_at_the_same_time() {
    let state = folder();
    let service = start(config(state.path()));
    let ask = |seed: u64, owner: &str, key: &str| service.submit(request("a key", seed, 2), owner, Some(key));
    let ids: BTreeSet<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| ask(1, LOCAL, "k").unwrap().id)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ids.len(), 1);
    let id = *ids.first().unwrap();
    assert!(ask(1, "somebody", "k").unwrap().id != id, "keys are their owner's");
    assert!(ask(1, LOCAL, "other").unwrap().id != id);
    assert!(matches!(ask(2, LOCAL, "k"), Err(Refusal::Conflict(_))));
    wait(&service, id);
    let again = ask(1, LOCAL, "k").unwrap();
    assert_eq!((again.id, again.status), (id, Status::Completed));
    service.stop(Duration::from_secs(10));
    drop(service);
    let service = start(config(state.path()));
    assert_eq!(service.submit(request("a key", 1, 2), LOCAL, Some("k")).unwrap().id, id, "also for the next server");
}

#[test]
fn cancelling_ends_a_job_within_a_step_and_the_next_one_begins() {
    let state = folder();
    let mut config = config(state.path());
    config.limits.rows = 1;
    let service = start(config);
    let rounds = std::env::var("KILN_TEST_CANCELS").map_or(20, |count| count.parse().unwrap());
    for round in 0..rounds {
        // Long enough not to end before the check, however busy the machine is.
        let long = submit(&service, JobRequest { count: 10, ..request("a red apple", round, 200) });
        let next = submit(&service, request("a key", round, 1));
        let told = service.events(long, LOCAL, 0).unwrap();
        let step = round as usize % 5;
        until("it runs", || {
            let job = service.job(long, LOCAL).unwrap();
            job.status == Status::Running && job.step >= step
        });
        assert_eq!(service.cancel(long, LOCAL).unwrap(), CancelOutcome::Cancelled);
        let at = service.job(long, LOCAL).unwrap().step;
        let job = wait(&service, long);
        assert_eq!(job.status, Status::Cancelled);
        assert!(job.step <= at + 1, "cancelled at step {at}, ended after {}", job.step);
        assert!(job.images.is_empty() && matches!(all(told).last().unwrap().event, Event::Cancelled {}));
        assert_eq!(wait(&service, next).status, Status::Completed);
        assert_eq!(service.cancel(long, LOCAL).unwrap(), CancelOutcome::Finished(Status::Cancelled));
    }
    let long = long_job(&service);
    let waiting = submit(&service, request("a key", 1, 1));
    assert_eq!(service.job(waiting, LOCAL).unwrap().queue_position, Some(0));
    service.cancel(waiting, LOCAL).unwrap();
    assert_eq!(service.job(waiting, LOCAL).unwrap().status, Status::Cancelled, "at once, while it waits");
    assert!(matches!(service.cancel(long, "somebody"), Err(Missing::Unknown)));
    service.cancel(long, LOCAL).unwrap();
    assert_eq!(wait(&service, long).status, Status::Cancelled);
}

#[test]
fn eight_images_with_eight_sets_of_adapters_are_those_made_alone() {
    let (state, loras) = (folder(), folder());
    adapters(loras.path(), &[4, 8, 16, 64, 4, 16, 8]);
    let mut config = config(state.path());
    config.loras = vec![loras.path().into()];
    let worn: Vec<Vec<(&str, f64)>> = vec![
        vec![("a0", 1.0)],
        vec![("a1", 0.8)],
        vec![("a2", 1.0)],
        vec![("a3", 0.5)],
        vec![],
        vec![("a4", 1.0), ("a5", -0.5)],
        vec![("a6", 1.0)],
        vec![("a0", 0.3)],
    ];
    let jobs =
        || worn.iter().zip(0..).map(|(loras, seed)| with_loras(request("a red apple", seed, 6 + seed as usize), loras));

    let together = start(config.clone());
    let long = long_job(&together);
    let ids: Vec<_> = jobs().map(|job| submit(&together, job)).collect();
    let together_images: Vec<_> = ids.iter().map(|id| images(&together, *id)).collect();
    let (rows, calls) = (metric(&together, "kiln_batch_images_sum"), metric(&together, "kiln_batch_images_count"));
    assert!(rows / calls > 1.2, "{rows} images went through the network in {calls} calls: not together");
    together.cancel(long, LOCAL).unwrap();
    together.stop(Duration::from_secs(10));
    drop(together);

    config.limits.rows = 1;
    config.state = state.path().join("alone");
    let alone = start(config);
    for (job, expected) in jobs().zip(&together_images) {
        let id = submit(&alone, job);
        assert!(images(&alone, id) == *expected, "the same bits");
    }
    assert_eq!(metric(&alone, "kiln_batch_images_sum"), metric(&alone, "kiln_batch_images_count"));
    let distinct: BTreeSet<_> = together_images.iter().collect();
    assert_eq!(distinct.len(), 8);
}

#[test]
fn adapters_are_read_once_and_those_in_use_stay() {
    let (state, loras) = (folder(), folder());
    adapters(loras.path(), &[16, 16, 16]);
    let one = std::fs::metadata(loras.path().join("a0.safetensors")).unwrap().len();
    let mut config = config(state.path());
    config.loras = vec![loras.path().into()];
    config.limits.adapter_bytes = Bytes(one + one / 2); // one and no more
    let service = start(config);
    let infos = service.loras();
    assert_eq!(infos.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["a0", "a1", "a2"]);
    assert!(
        infos.iter().all(|info| info.rank == Some(16) && info.fits == ["nano"] && !info.changes_text && !info.uploaded)
    );
    let loads = metric(&service, "kiln_adapter_loads_total");
    assert_eq!(loads, 3.0);
    assert_eq!(service.loras(), infos, "from memory");
    assert_eq!(metric(&service, "kiln_adapter_loads_total"), loads);
    assert_eq!(infos.iter().filter(|info| info.in_memory).count(), 1, "the others had to go");

    let before = images(&service, submit(&service, with_loras(request("a key", 1, 4), &[("a0", 1.0)])));
    let long = submit(&service, with_loras(request("a red apple", 1, 200), &[("a0", 1.0), ("a1", 0.5)]));
    until("it runs", || service.job(long, LOCAL).unwrap().step > 0);
    for name in ["a2", "a0", "a2", "a1"] {
        images(&service, submit(&service, with_loras(request("a key", 1, 2), &[(name, 1.0)])));
        let in_memory: Vec<_> =
            service.loras().into_iter().filter(|info| info.in_memory).map(|info| info.name).collect();
        assert!(["a0", "a1"].iter().all(|name| in_memory.iter().any(|other| other == name)), "{in_memory:?}");
    }
    service.cancel(long, LOCAL).unwrap();
    assert_eq!(images(&service, submit(&service, with_loras(request("a key", 1, 4), &[("a0", 1.0)]))), before);
    assert!(metric(&service, "kiln_adapter_evictions_total") >= 2.0);
}

#[test]
fn uploads_are_checked_before_they_are_accepted() {
    let (state, loras) = (folder(), folder());
    adapters(loras.path(), &[4]);
    let file = |name: &str| std::fs::read(loras.path().join(name)).unwrap();
    let good = file("a0.safetensors");
    let mut config = config(state.path());
    config.loras = vec![loras.path().into()];
    config.limits.upload_bytes = Bytes(good.len() as u64 + 8);
    let service = start(config);
    let refused = |name: &str, bytes: &[u8]| match service.upload_lora(name, bytes) {
        Err(Refusal::Invalid(e)) => e.to_string(),
        other => panic!("{name}: {other:?}"),
    };
    for name in ["", ".", "..", "../a", "a/b", "a\\b", ".hidden", "a b", "ä", "a\0", "%2e%2e", &"x".repeat(129)] {
        assert!(refused(name, &good).contains("is not a valid name"), "{name}");
    }
    assert!(refused("a0", &good).contains("in a folder of the server"));
    assert!(refused("large", &[&good[..], &[0; 9]].concat()).contains("bytes"));
    for broken in [&b""[..], b"GIF89a", &good[..good.len() / 2], &[255; 64], b"{\"a\": 1}"] {
        assert!(
            !refused("broken", broken).contains(state.path().to_str().unwrap()),
            "folders of the server are its own"
        );
    }
    // A file with other keys, and an adapter of another model.
    let vae = std::fs::read_dir(root("tests/fixtures/flux/vae")).unwrap().map(|entry| entry.unwrap().path());
    let vae = vae.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "safetensors")).unwrap();
    let vae = std::fs::read(vae).unwrap();
    if vae.len() <= good.len() + 8 {
        assert!(refused("vae", &vae).contains("holds no LoRA"));
    }
    let other = folder();
    let path = other.path().join("other.safetensors");
    adapter(&layers("tests/fixtures/flux"), 1, 5).write(&path, kiln::lora::Format::Diffusers, FileDtype::F32).unwrap();
    let error = refused("other", &std::fs::read(path).unwrap());
    assert!(error.contains("the model has no such layer") || error.contains("the layer has"), "{error}");
    assert_eq!(std::fs::read_dir(state.path().join("loras")).unwrap().count(), 0, "nothing is left");

    let info = service.upload_lora("mine-1.0", &good).unwrap();
    assert!(info.uploaded && info.fits == ["nano"] && info.rank == Some(4) && info.bytes == good.len() as u64);
    let wearing = |name: &str| with_loras(request("a key", 1, 4), &[(name, 1.0)]);
    let image = images(&service, submit(&service, wearing("mine-1.0")));
    assert_eq!(image, images(&service, submit(&service, wearing("a0"))), "it is the same adapter");
    assert!(image != images(&service, submit(&service, request("a key", 1, 4))));
    assert!(matches!(service.remove_lora("a0"), Err(Missing::Unknown)) && loras.path().join("a0.safetensors").exists());
    let long = long_job(&service);
    let ids: Vec<_> = (0..9).map(|_| submit(&service, wearing("mine-1.0"))).collect();
    service.remove_lora("mine-1.0").unwrap();
    service.cancel(long, LOCAL).unwrap();
    for id in ids {
        let job = wait(&service, id);
        let said = || job.error.as_ref().unwrap().message.contains("mine-1.0");
        assert!(job.status == Status::Completed || (job.status == Status::Failed && said()), "{job:?}");
    }
    assert!(matches!(service.submit(wearing("mine-1.0"), LOCAL, None), Err(Refusal::Invalid(_))));
    assert!(matches!(service.remove_lora("mine-1.0"), Err(Missing::Unknown)));
}

#[test]
fn the_queue_and_each_owners_share_of_it_are_exact_whatever_comes_at_once() {
    let state = folder();
    let mut config = config(state.path());
    config.limits = LimitsConfig { queue: 20, share: 0.25, rows: 1, ..LimitsConfig::default() };
    let service = start(config);
    let long = long_job(&service);
    let (accepted, full, share) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let ask = |owner: &str| match service.submit(request("a key", 1, 1), owner, None) {
        Ok(_) => accepted.fetch_add(1, Ordering::SeqCst),
        Err(Refusal::QueueFull { retry_after }) if retry_after.as_secs() >= 1 => full.fetch_add(1, Ordering::SeqCst),
        Err(Refusal::ShareFull { .. }) => share.fetch_add(1, Ordering::SeqCst),
        other => panic!("{other:?}"),
    };
    std::thread::scope(|scope| {
        (0..16).for_each(|_| _ = scope.spawn(|| (0..4).for_each(|_| _ = ask("greedy"))));
    });
    let count = |of: &AtomicUsize| of.load(Ordering::SeqCst);
    assert_eq!((count(&accepted), count(&full), count(&share)), (5, 0, 59), "a quarter of 20");
    std::thread::scope(|scope| {
        (0..16).for_each(|number| _ = scope.spawn(move || number));
        for number in 0..16 {
            let ask = &ask;
            scope.spawn(move || (0..4).for_each(|_| _ = ask(&format!("owner {number}"))));
        }
    });
    assert_eq!((count(&accepted), count(&full)), (20, 49));
    assert_eq!(service.status().queue.depth, 20);
    assert!(matches!(service.submit(request("a key", 1, 1), LOCAL, None), Err(Refusal::QueueFull { .. })));
    service.cancel(long, LOCAL).unwrap();
    until("the queue is empty", || service.status().queue.depth == 0 && service.status().running.is_empty());
    assert_eq!(metric(&service, "kiln_jobs_accepted_total"), 21.0);
    wait(&service, submit(&service, request("a key", 1, 1)));
}

#[test]
fn results_expire_by_age_and_by_size_and_are_known_to_have_existed() {
    let state = folder();
    let pictures = |state: &Path| std::fs::read_dir(state.join("images")).unwrap().count();
    let service = start(config(state.path()));
    let made = |service: &Service, seed: u64| {
        let id = submit(service, request("a red apple", seed, 2));
        (id, images(service, id)[0].len() as u64)
    };
    let (first, bytes) = made(&service, 1);
    let (second, _) = made(&service, 2);
    assert_eq!(pictures(state.path()), 2);
    drop(service);
    let mut limited = config(state.path());
    limited.results = ResultsConfig { keep_seconds: 3600, bytes: Bytes(bytes + bytes / 2) };
    let service = start(limited);
    until("the older one is gone", || matches!(service.job(first, LOCAL), Err(Missing::Expired)));
    assert!(matches!(service.image(first, LOCAL, 0), Err(Missing::Expired)));
    assert!(service.image(second, LOCAL, 0).is_ok() && service.jobs(LOCAL).len() == 1);
    until("its folder is gone", || pictures(state.path()) == 1);
    drop(service);
    let mut short = config(state.path());
    short.results = ResultsConfig { keep_seconds: 0, bytes: Bytes(1 << 30) };
    let service = start(short);
    until("the other one, too", || matches!(service.job(second, LOCAL), Err(Missing::Expired)));
    assert!(matches!(service.job(first, LOCAL), Err(Missing::Expired)), "it is still known");
    until("nothing is left", || pictures(state.path()) == 0);
}

#[test]
fn a_flawed_image_is_generated_once_more_and_then_failed() {
    let (state, loras) = (folder(), folder());
    std::fs::create_dir_all(loras.path()).unwrap();
    let mut wild = adapter(&layers(NANO), 4, 1);
    wild.layers.iter_mut().for_each(|layer| layer.b = layer.b.clone() * f32::MAX);
    wild.write(loras.path().join("wild.safetensors"), kiln::lora::Format::Diffusers, FileDtype::F32).unwrap();
    let mut config = config(state.path());
    config.loras = vec![loras.path().into()];
    let service = start(config);
    let id = submit(&service, with_loras(JobRequest { count: 2, ..request("a key", 1, 4) }, &[("wild", 1e30)]));
    let beside = submit(&service, request("a key", 1, 4));
    let told = all(service.events(id, LOCAL, 0).unwrap());
    let attempts: Vec<_> = told
        .iter()
        .filter_map(|told| if let Event::Started { attempt } = told.event { Some(attempt) } else { None })
        .collect();
    assert_eq!(attempts, [1, 2]);
    let job = wait(&service, id);
    assert_eq!((job.status, job.attempts, job.images.len()), (Status::Failed, 2, 0));
    let error = job.error.unwrap();
    assert!(error.message.contains("not finite") && error.message.contains("two seeds"), "{error:?}");
    images(&service, beside);
    assert_eq!(wait(&service, beside).attempts, 1, "its neighbour is none of the worse for it");
}

#[test]
fn a_stop_finishes_what_it_can_and_leaves_the_rest_to_the_next_server() {
    let state = folder();
    let mut one = config(state.path());
    one.limits.rows = 1;
    let service = start(one.clone());
    let refused = Service::start(one.clone(), &Device::flex()).err().unwrap().to_string();
    assert!(refused.contains("another server"), "{refused}");
    let long = long_job(&service);
    let waiting = submit(&service, request("a key", 1, 2));
    let stream = service.events(waiting, LOCAL, 0).unwrap();
    service.stop(Duration::ZERO);
    assert!(all(stream).iter().all(|told| !told.event.is_final()), "streams end");
    assert!(matches!(service.submit(request("a key", 1, 2), LOCAL, None), Err(Refusal::Stopping)));
    assert!(service.ready().is_err());
    assert!([long, waiting].iter().all(|id| service.job(*id, LOCAL).unwrap().status == Status::Queued));
    drop(service);
    let service = start(one);
    until("the long one runs again, first", || service.job(long, LOCAL).unwrap().step > 0);
    assert_eq!(service.job(waiting, LOCAL).unwrap().queue_position, Some(0));
    service.cancel(long, LOCAL).unwrap();
    assert_eq!(wait(&service, waiting).status, Status::Completed);
    let last = submit(&service, request("a key", 2, 20));
    until("it runs", || service.job(last, LOCAL).unwrap().status == Status::Running);
    service.stop(Duration::from_secs(30));
    assert_eq!(service.job(last, LOCAL).unwrap().status, Status::Completed, "there was time enough");
}

#[test]
fn models_are_loaded_when_they_are_asked_for_and_unloaded_on_request() {
    let state = folder();
    let mut two = config(state.path());
    two.models.push(model("sd", "tests/fixtures/tiny-sd"));
    let service = start(two);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let loaded = || service.models().into_iter().map(|model| model.loaded).collect::<Vec<_>>();
    assert_eq!(loaded(), [false, false]);
    runtime.block_on(service.load("sd")).unwrap();
    assert_eq!(loaded(), [false, true]);
    let ids: Vec<_> = ["sd", "nano", "sd", "nano"]
        .iter()
        .map(|name| submit(&service, JobRequest { model: Some((*name).into()), ..request("a key", 1, 2) }))
        .collect();
    let files: Vec<_> = ids.iter().map(|id| images(&service, *id)).collect();
    assert!(files[0] == files[2] && files[1] == files[3] && files[0] != files[1]);
    runtime.block_on(service.unload("sd")).unwrap();
    assert_eq!(loaded(), [true, false]);
    assert!(runtime.block_on(service.load("none")).is_err());
    let infos = service.models();
    assert!(infos[0].default && infos[0].schedulers.is_empty() && infos[1].schedulers.contains(&"ddim".to_string()));
    assert_eq!((infos[0].native_size, infos[1].native_size, infos[0].family.as_str()), (64, 64, "FLUX.1"));
}
