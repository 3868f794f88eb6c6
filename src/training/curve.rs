//! The evaluation curve of the InstructPix2Pix paper (Brooks et al. 2023, section 4.1): similarity of edits to their originals against
//! agreement with the instruction.

use std::fmt;

use serde::Serialize;

use crate::pipelines::EditScore;

/// The image guidance scales of the curve, as in the paper; the larger, the closer an edit stays to its original.
pub(super) const IMAGE_GUIDANCES: [f64; 7] = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2];

/// CLIP image similarity against directional similarity, swept over image guidance. The better of two models has the curve further up
/// and to the right.
#[derive(Clone, Debug, Serialize)]
pub struct EditCurve {
    /// The number of held-out edits measured, once for each seed.
    pub edits: usize,
    /// The text guidance scale of all points.
    pub text_guidance: f64,
    /// The points, by increasing image guidance.
    pub points: Vec<CurvePoint>,
    /// The scores of the dataset's own edited images, which a perfect model would reach.
    pub target: CurvePoint,
}

/// A point of the curve: means over all edits.
#[derive(Clone, Debug, Serialize)]
pub struct CurvePoint {
    /// The image guidance scale; none for the edits of the dataset.
    pub image_guidance: Option<f64>,
    /// CLIP similarity of edit and original: `cos(E(original), E(edit))`.
    pub image_similarity: f64,
    /// Directional similarity: of the change of the image to the change of its caption; none if the dataset lacks captions of both.
    pub directional_similarity: Option<f64>,
}

impl CurvePoint {
    /// The means of at least one of `scores`. Edits without captions do not count for the direction.
    pub(super) fn new(image_guidance: Option<f64>, scores: &[EditScore]) -> Self {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let directions: Vec<f64> = scores.iter().filter_map(|score| score.direction).collect();
        Self {
            image_guidance,
            image_similarity: mean(&scores.iter().map(|score| score.image).collect::<Vec<_>>()),
            directional_similarity: (!directions.is_empty()).then(|| mean(&directions)),
        }
    }
}

impl fmt::Display for EditCurve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} edits of held-out images at text guidance {}:", self.edits, self.text_guidance)?;
        write!(f, "{:>14}  {:>16}  {:>22}", "image guidance", "image similarity", "directional similarity")?;
        for point in self.points.iter().chain([&self.target]) {
            let guidance = point.image_guidance.map_or("target".to_string(), |guidance| guidance.to_string());
            let direction = point.directional_similarity.map_or("-".to_string(), |direction| format!("{direction:.4}"));
            write!(f, "\n{guidance:>14}  {:>16.4}  {direction:>22}", point.image_similarity)?;
        }
        Ok(())
    }
}
