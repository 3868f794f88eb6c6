//! The engine: one thread that owns the device and all sessions, and generates the images of jobs.
//!
//! Jobs start in the order of their acceptance, with as many images at once as allowed; a job for another model waits until the
//! running ones have ended. Images join and leave between two steps.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use burn::tensor::{Device, FloatDType};
use image::ImageFormat;

use super::{
    adapters::OnDevice,
    job::{Failure, JobId, Made, Status},
    loads::{Loaded, Loads, caught},
    models::flaw_of_original,
    preview::Latents,
    record::Record,
    sanity::Flaw,
    shared::{Order, Shared},
    work::{Loras, Unit, Wearing, Work},
};
use crate::{
    error::{Error, Problem, Result},
    memory,
    pipelines::{
        Denoising,
        pipeline::{NOT_FINITE, WHY_NOT_FINITE},
    },
    stop,
};

/// How long the engine sleeps when there is nothing to do, and how often it removes expired images.
const PAUSE: Duration = Duration::from_secs(1);

/// The side, in latent pixels, of the latents that are decoded to fit the preview colors before there is an image.
const PROBE: usize = 16;

/// The state of the thread.
pub struct Engine {
    shared: Arc<Shared>,
    device: Device,
    loads: Loads,
    on_device: OnDevice,
    /// Jobs that have started, the oldest first; all for one model.
    works: Vec<Work>,
    units: Vec<Unit>,
    tidied: Option<Instant>,
}

impl Engine {
    /// An engine with no model loaded.
    pub fn new(shared: Arc<Shared>, device: &Device) -> Self {
        let limits = &shared.config.limits;
        let loads = Loads::new(shared.models.all().len(), device, limits.rows);
        let on_device = OnDevice::new(device, limits.adapter_bytes.0);
        let device = device.clone();
        Self { shared, device, loads, on_device, works: Vec::new(), units: Vec::new(), tidied: None }
    }

    /// Runs until the server is stopped.
    pub fn run(mut self) {
        loop {
            self.shared.beat();
            let stop_at = self.shared.state().stop_at;
            if stop_at.is_some_and(|stop_at| self.works.is_empty() || stop_at <= Instant::now()) {
                break;
            }
            self.obey();
            self.drop_cancelled();
            self.admit(stop_at.is_some());
            self.advance();
            self.collect();
            self.tidy();
            if self.works.is_empty() {
                self.rest();
            }
        }
        self.units.clear();
        for work in std::mem::take(&mut self.works) {
            self.shared.put_back(work.id);
        }
    }

    /// Waits for something to do.
    fn rest(&self) {
        let waits = stop::requested(); // then no job is started
        self.shared.wait(PAUSE, |state| {
            state.stop_at.is_some() || !state.orders.is_empty() || (state.queue.depth() > 0 && !waits)
        });
    }

    /// Loads and unloads models as ordered, once no running job is in the way.
    fn obey(&mut self) {
        if !self.works.is_empty() {
            return;
        }
        let (orders, shared) = (std::mem::take(&mut self.shared.state().orders), self.shared.clone());
        for order in orders {
            // The caller may be gone.
            match order {
                Order::Load(number, reply) => {
                    let load = || self.loads.load(number, shared.models.all(), &shared.numbers).map(drop);
                    let loaded = caught(&self.device, load);
                    _ = reply.send(loaded);
                }
                Order::Unload(number, reply) => {
                    let unload = || {
                        self.loads.unload(number, shared.models.all(), &shared.numbers);
                        Ok(())
                    };
                    _ = reply.send(caught(&self.device, unload));
                }
            }
        }
    }

    fn drop_cancelled(&mut self) {
        let cancelled: Vec<_> = {
            let state = self.shared.state();
            let is_cancelled = |id: &JobId| state.queue.get(*id).is_some_and(|entry| entry.is_cancelled);
            self.works.iter().map(|work| work.id).filter(is_cancelled).collect()
        };
        cancelled.into_iter().for_each(|id| self.end(id, Status::Cancelled, None));
    }

    /// Ends a job that is not completed, along with its images in progress.
    fn end(&mut self, id: JobId, status: Status, error: Option<&Error>) {
        self.units.retain(|unit| unit.job != id);
        self.works.retain(|work| work.id != id);
        match error {
            Some(error) if error.is_stop() => self.shared.put_back(id),
            error => self.shared.end(id, status, Vec::new(), error.map(Failure::from)),
        }
    }

    /// Starts images while there is room, those of running jobs first.
    fn admit(&mut self, is_stopping: bool) {
        loop {
            if let Some(place) = self.works.iter().position(Work::has_left) {
                if !self.has_room(place) {
                    return;
                }
                let id = self.works[place].id;
                if let Err(e) = self.begin(place) {
                    self.end(id, Status::Failed, Some(&e));
                }
                continue;
            }
            if is_stopping || stop::requested() {
                return;
            }
            let Some(next) = self.shared.state().queue.next().cloned() else { return };
            let model = match self.shared.models.find(next.request.model.as_deref()) {
                Ok(model) => model,
                Err(e) => {
                    // It was accepted by an earlier server, which had this model.
                    if self.shared.change(|state| state.queue.cancel(next.id)) {
                        self.shared.end(next.id, Status::Failed, Vec::new(), Some(Failure::from(&e)));
                    }
                    continue;
                }
            };
            let in_the_way = self.works.first().is_some_and(|work| work.model != model);
            if in_the_way || self.units.len() >= self.shared.config.limits.rows {
                return;
            }
            self.start(&next, model);
        }
    }

    /// Whether another image of a job can be denoised beside those in progress.
    fn has_room(&mut self, place: usize) -> bool {
        let work = &self.works[place];
        let (size, most) = ((work.template.width, work.template.height), self.shared.config.limits.rows);
        let fitting = self.loads.get(work.model).map_or(1, |loaded| loaded.at_once(size, most));
        self.units.len() < fitting
    }

    /// Starts a job: loads its model and adapters, or fails it.
    fn start(&mut self, next: &Record, model: usize) {
        let id = next.id;
        let Some(record) = self.shared.start(id) else { return };
        let device = self.device.clone();
        match record.and_then(|record| caught(&device, || self.dress(&record, model))) {
            Ok(work) => self.works.push(work),
            Err(e) => self.end(id, Status::Failed, Some(&e)),
        }
    }

    /// Prepares a job: its model, adapters and files.
    fn dress(&mut self, record: &Record, model: usize) -> Result<Work> {
        let (shared, request) = (self.shared.clone(), &record.request);
        let template = shared.models.images(request, &shared.journal.inputs(record.id)?, &shared.config.limits)?;
        let loaded = self.loads.load(model, shared.models.all(), &shared.numbers)?;
        let mut take = |name: &str| Ok(self.on_device.of(&shared.adapters.take(name, &shared.numbers)?));
        let loras = request.loras.iter().map(|choice| Ok((take(&choice.name)?, choice.scale)));
        let loras = loras.collect::<Result<Loras>>()?;
        let worn = match self.works.iter().map(|work| &work.worn).find(|worn| worn.is(&loras)) {
            Some(worn) => worn.clone(),
            None => {
                let worn = loaded.session.wear(loras.iter().map(|(lora, scale)| (&**lora, *scale)))?;
                Wearing { worn, loras }
            }
        };
        let flaw = flaw_of_original(&template);
        Ok(Work::new(record, model, template, flaw, worn))
    }

    /// Starts the next image of a job.
    fn begin(&mut self, place: usize) -> Result<()> {
        let work = &mut self.works[place];
        let Some((image, attempt, images)) = work.next() else { return Ok(()) };
        let started = Instant::now();
        let denoising = caught(&self.device, || {
            let loaded = self.loads.load(work.model, self.shared.models.all(), &self.shared.numbers)?;
            loaded.session.begin(&images, &work.worn.worn)
        })?;
        self.shared.numbers.begin_seconds.observe(started.elapsed().as_secs_f64());
        work.takes(denoising.of());
        let (job, seed) = (work.id, images.seeds[0]);
        self.units.push(Unit { job, image, attempt, seed, denoising });
        Ok(())
    }

    /// Advances all images by one step, those of one size together.
    fn advance(&mut self) {
        for pass in self.passes() {
            let started = Instant::now();
            let Some(model) = self.works.first().map(|work| work.model) else { return };
            let Some(loaded) = self.loads.get(model) else { return };
            let in_pass = |(number, unit)| pass.contains(&number).then_some(unit);
            let mut all: Vec<&mut Denoising> =
                self.units.iter_mut().enumerate().filter_map(in_pass).map(|unit| &mut unit.denoising).collect();
            let done = caught(&self.device, || loaded.session.advance(&mut all));
            let jobs: Vec<_> = pass.iter().map(|&number| self.units[number].job).collect();
            if let Err(e) = done {
                jobs.into_iter().for_each(|id| self.fail(id, &e));
                return; // the indices of the units have changed
            }
            self.shared.numbers.step_seconds.observe(started.elapsed().as_secs_f64());
            self.shared.numbers.batch_images.observe(pass.len() as f64);
            for id in jobs {
                self.works.iter_mut().filter(|work| work.id == id).for_each(Work::stepped);
            }
        }
        for work in self.works.iter_mut().filter(|work| work.has_news) {
            work.has_news = false;
            let (step, of) = work.steps();
            self.shared.change(|state| state.queue.progress(work.id, step, of));
        }
        self.show();
    }

    fn fail(&mut self, id: JobId, error: &Error) {
        if self.works.iter().any(|work| work.id == id) {
            self.end(id, Status::Failed, Some(error));
        }
    }

    /// The indices of the units that go through the network together in each call: those of one size.
    fn passes(&self) -> Vec<Vec<usize>> {
        let mut passes: Vec<Vec<usize>> = Vec::new();
        for (number, unit) in self.units.iter().enumerate() {
            let goes_with = |pass: &&mut Vec<usize>| self.units[pass[0]].denoising.size() == unit.denoising.size();
            match passes.iter_mut().find(goes_with) {
                Some(pass) => pass.push(number),
                None => passes.push(vec![number]),
            }
        }
        passes
    }

    /// Publishes previews of images.
    fn show(&mut self) {
        for unit in &self.units {
            let Some(work) = self.works.iter().find(|work| work.id == unit.job) else { continue };
            let (step, of) = (unit.denoising.step(), unit.denoising.of());
            if !work.shows(step, of) {
                continue;
            }
            let Some(loaded) = self.loads.get(work.model) else { continue };
            // A failed preview does not stop the job.
            if let Ok(Some(png)) = caught(&self.device, || preview(loaded, &unit.denoising)) {
                self.shared.change(|state| state.queue.preview(unit.job, unit.image, step, png));
            }
        }
    }

    /// Decodes finished images, checks them and writes them.
    fn collect(&mut self) {
        while let Some(place) = self.units.iter().position(|unit| unit.denoising.is_done()) {
            let unit = self.units.remove(place);
            let (id, device) = (unit.job, self.device.clone());
            match caught(&device, || self.finish(&unit)) {
                Ok(None) => {}
                Ok(Some(images)) => {
                    self.works.retain(|work| work.id != id);
                    self.shared.end(id, Status::Completed, images, None);
                }
                Err(e) => self.end(id, Status::Failed, Some(&e)),
            }
        }
    }

    /// Finishes an image; returns all images of its job if it was the last.
    fn finish(&mut self, unit: &Unit) -> Result<Option<Vec<Made>>> {
        let Some(work) = self.works.iter_mut().find(|work| work.id == unit.job) else { return Ok(None) };
        let Some(loaded) = self.loads.get(work.model) else { return Ok(None) };
        let (started, latents) = (Instant::now(), unit.denoising.latents());
        let decoded = match latents.clone().is_finite().all().into_scalar::<bool>() {
            true => loaded.session.decode(latents.clone()),
            false => Err(Error::setting("image", NOT_FINITE)),
        };
        self.shared.numbers.decode_seconds.observe(started.elapsed().as_secs_f64());
        let (image, flaw) = match decoded {
            Ok(mut images) => {
                let image = images.pop();
                let flaw = image.as_ref().and_then(Flaw::of).filter(|flaw| work.flaw != Some(*flaw));
                (image, flaw)
            }
            Err(e) if e.problem == Problem::One(NOT_FINITE.into()) => (None, Some(Flaw::NotFinite)),
            Err(e) => return Err(e),
        };
        if let Some(flaw) = flaw {
            if !work.make_again(unit.image, unit.attempt) {
                let problem = format!("{}, from two seeds", flaw.words());
                return Err(Error::setting(format!("image {}", unit.image + 1), problem).hint(WHY_NOT_FINITE));
            }
            tracing::warn!("job {}: generating image {} again: {}", unit.job, unit.image + 1, flaw.words());
            self.shared.numbers.made_again.inc();
            self.shared.change(|state| state.queue.again(unit.job, unit.attempt + 1));
            return Ok(None);
        }
        let Some(image) = image else { return Err(Error::setting("image", "was not generated")) };
        if let Some(latents) = on_host(&unit.denoising) {
            loaded.colors.learn(&latents, &image);
        }
        let bytes = self.shared.results.write(unit.job, unit.image, &image)?;
        work.keep(unit.image, Made { seed: unit.seed, width: image.width(), height: image.height(), bytes });
        Ok(work.images())
    }

    /// Removes expired images and records the memory in use.
    fn tidy(&mut self) {
        if self.tidied.is_some_and(|tidied| tidied.elapsed() < PAUSE) {
            return;
        }
        self.tidied = Some(Instant::now());
        self.shared.tidy();
        self.shared.numbers.host_bytes.set(memory::usage(&self.device).resident as i64);
        self.shared.numbers.device_bytes.set(memory::device_usage(&self.device).map_or(0, |usage| usage.in_use as i64));
    }
}

/// The current latents of an image, on the host.
fn on_host(denoising: &Denoising) -> Option<Latents> {
    let latents = denoising.latents().clone().cast(FloatDType::F32);
    let [_, channels, rows, columns] = latents.dims();
    let values = latents.into_data().into_vec().ok()?;
    Some(Latents { values, shape: [channels, rows, columns] })
}

/// A small PNG preview of an image; `None` if its latents are not finite.
fn preview(loaded: &mut Loaded, denoising: &Denoising) -> Result<Option<Vec<u8>>> {
    let Some(latents) = on_host(denoising) else { return Ok(None) };
    if loaded.colors.is_empty() {
        // Fits the colors to a crop of this image's own latents: once per model, before its first image is finished.
        let (width, height) = denoising.size();
        let part = denoising.latents().clone().narrow(2, 0, height.min(PROBE)).narrow(3, 0, width.min(PROBE));
        let shape = [part.dims()[1], part.dims()[2], part.dims()[3]];
        let values = part.clone().cast(FloatDType::F32).into_data().into_vec();
        if let (Ok(values), Some(image)) = (values, loaded.session.decode(part)?.pop()) {
            loaded.colors.learn(&Latents { values, shape }, &image);
        }
    }
    let Some(image) = loaded.colors.show(&latents) else { return Ok(None) };
    let mut png = std::io::Cursor::new(Vec::new());
    let written = image.write_to(&mut png, ImageFormat::Png);
    Ok(written.is_ok().then(|| png.into_inner()))
}
