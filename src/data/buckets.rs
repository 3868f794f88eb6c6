//! Aspect-ratio buckets: images of similar shape get the same size, so that they fit into one batch.

use serde::{Deserialize, Serialize};

use super::DataConfig;

/// A size in pixels that images are scaled and cropped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bucket {
    /// Width in pixels, a multiple of the step.
    pub width: usize,
    /// Height in pixels, a multiple of the step.
    pub height: usize,
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}", self.width, self.height)
    }
}

impl Bucket {
    fn aspect(self) -> f64 {
        self.width as f64 / self.height as f64
    }

    /// The factor by which an image must be scaled to cover the bucket.
    pub fn scale(self, width: usize, height: usize) -> f64 {
        (self.width as f64 / width as f64).max(self.height as f64 / height as f64)
    }
}

/// All sizes of one configuration, and the rule for choosing one.
#[derive(Clone, Debug)]
pub struct Buckets {
    full: Vec<Bucket>,
    area: f64,
    step: usize,
    aspects: (f64, f64),
    max_upscale: f64,
}

impl Buckets {
    /// The full-size buckets: for each width and each height that is a multiple of the step, the largest other side that
    /// keeps the area at or below `resolution²` and the aspect within its limits.
    pub fn new(config: &DataConfig) -> Self {
        let (step, area) = (config.bucket_step, config.resolution.pow(2));
        let aspects = (config.min_aspect, config.max_aspect);
        let mut full: Vec<_> = (1..=area / (step * step))
            .map(|n| n * step)
            .flat_map(|side| {
                let other = area / side / step * step;
                [Bucket { width: side, height: other }, Bucket { width: other, height: side }]
            })
            .filter(|b| b.height > 0 && b.width > 0 && (aspects.0..=aspects.1).contains(&b.aspect()))
            .collect();
        full.sort_unstable();
        full.dedup();
        Self { full, area: area as f64, step, aspects, max_upscale: config.max_upscale }
    }

    /// The bucket of an image: of the full-size ones, the one with the nearest aspect (and of equal ones the largest); if
    /// the image would have to be enlarged by more than `max_upscale` for it, a smaller one of the image's own aspect.
    /// `None` if the image is too small for even one step.
    pub fn choose(&self, width: usize, height: usize) -> Option<Bucket> {
        let (width, height) = (width as f64, height as f64);
        let aspect = (width / height).clamp(self.aspects.0, self.aspects.1);
        let distance = |b: &Bucket| (b.aspect() / aspect).ln().abs();
        let nearest = self
            .full
            .iter()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)).then((b.width * b.height).cmp(&(a.width * a.height))));
        if let Some(bucket) = nearest
            && bucket.scale(width as usize, height as usize) <= self.max_upscale
        {
            return Some(*bucket);
        }
        // The largest sides of this aspect within both the image, enlarged as far as allowed, and the area.
        let side = |own: f64, other: f64, ratio: f64| {
            let longest = (own.min(other * ratio) * self.max_upscale).min((self.area * ratio).sqrt());
            (longest + 1e-6) as usize / self.step * self.step
        };
        let bucket = Bucket { width: side(width, height, aspect), height: side(height, width, 1.0 / aspect) };
        (bucket.width > 0 && bucket.height > 0).then_some(bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(resolution: usize, max_upscale: f64) -> Buckets {
        Buckets::new(&DataConfig { resolution, max_upscale, ..Default::default() })
    }

    #[test]
    fn buckets_are_multiples_of_the_step_within_area_and_aspect() {
        for resolution in [64, 128, 512, 1000, 1024] {
            let all = buckets(resolution, 1.0).full;
            assert!(all.len() >= 3);
            for b in all {
                assert!(b.width % 16 == 0 && b.height % 16 == 0 && b.width * b.height <= resolution * resolution);
                assert!((0.5..=2.0).contains(&b.aspect()), "{b}");
            }
        }
    }

    #[test]
    fn a_large_image_gets_the_bucket_of_the_nearest_aspect() {
        let buckets = buckets(1024, 1.0);
        let size = |w, h| buckets.choose(w, h).map(|b| (b.width, b.height));
        assert_eq!(size(2000, 2000), Some((1024, 1024)));
        assert_eq!(size(4000, 3000), Some((1184, 880)));
        assert_eq!(size(3000, 4000), Some((880, 1184)));
        assert_eq!(size(9000, 1000), Some((1440, 720)), "wider than 2:1 is cropped to it");
    }

    #[test]
    fn nothing_is_enlarged_beyond_the_limit() {
        for (resolution, limit) in [(512, 1.0), (1024, 1.0), (512, 1.5)] {
            let buckets = buckets(resolution, limit);
            for width in (16..3000).step_by(37) {
                for height in (16..3000).step_by(41) {
                    let Some(bucket) = buckets.choose(width, height) else { panic!("no bucket for {width}×{height}") };
                    assert!(bucket.scale(width, height) <= limit + 1e-9, "{width}×{height} enlarged to {bucket}");
                    assert!(bucket.width * bucket.height <= resolution * resolution);
                    assert!(bucket.width % 16 == 0 && bucket.height % 16 == 0);
                }
            }
        }
    }

    #[test]
    fn a_small_image_keeps_its_shape_and_a_tiny_one_has_no_bucket() {
        let size = |limit, w, h| buckets(512, limit).choose(w, h).map(|b| (b.width, b.height));
        assert_eq!(size(1.0, 300, 200), Some((288, 192)));
        assert_eq!(size(1.5, 300, 200), Some((448, 288)));
        assert_eq!(size(1.0, 15, 400), None);
    }
}
