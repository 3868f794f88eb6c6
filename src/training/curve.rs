//! How far edits go, and how much of the originals they keep: the curve of the InstructPix2Pix paper (Brooks et al. 2023,
//! section 4.1).

use std::fmt;

use serde::Serialize;

use crate::pipelines::EditScore;

/// The image guidances of the curve, as in the paper; the more, the closer an edit stays to its original.
pub(super) const IMAGE_GUIDANCES: [f64; 7] = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2];

/// Two similarities of CLIP against each other, over the image guidance. Of two models the better one has the curve further up
/// and to the right.
#[derive(Clone, Debug, Serialize)]
pub struct EditCurve {
    /// How many held-out edits were measured, once for each seed.
    pub edits: usize,
    /// The same for all points.
    pub text_guidance: f64,
    /// From little image guidance to much.
    pub points: Vec<CurvePoint>,
    /// The edited images of the dataset themselves: what a perfect model would score.
    pub target: CurvePoint,
}

/// Means over all edits.
#[derive(Clone, Debug, Serialize)]
pub struct CurvePoint {
    /// What the edits were made with; none for those of the dataset.
    pub image_guidance: Option<f64>,
    /// Of an edit to its original: `cos(E(original), E(edit))`.
    pub image_similarity: f64,
    /// Of the change of the image to that of its caption; none if the dataset has no captions before and after.
    pub directional_similarity: Option<f64>,
}

impl CurvePoint {
    /// The means of `scores`, at least one. Edits without captions do not count for the direction.
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
