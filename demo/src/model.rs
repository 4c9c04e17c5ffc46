//! The model: a multilayer perceptron with ReLU between its layers and softmax at its end, as
//! `train.py` writes it.

use serde::Deserialize;
use thiserror::Error;

/// Pixels of a digit.
pub const INPUTS: usize = 64;

/// Digits that it can be.
pub const OUTPUTS: usize = 10;

/// Why weights cannot be used.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// Not the JSON that `train.py` writes.
    #[error("not a weights file: {0}")]
    Json(#[from] serde_json::Error),
    /// Layers that do not fit each other.
    #[error("layer {layer} has {found} inputs in a row where {expected} come in")]
    Inputs {
        /// Counted from 0.
        layer: usize,
        /// What comes in from before it.
        expected: usize,
        /// The length of one of its rows.
        found: usize,
    },
    /// A layer whose rows and biases are not equally many, or a last one without 10.
    #[error("layer {layer} has {rows} rows and {biases} biases")]
    Outputs {
        /// Counted from 0.
        layer: usize,
        /// How many rows of weights.
        rows: usize,
        /// How many biases.
        biases: usize,
    },
}

/// A version of the model.
#[derive(Debug, Deserialize)]
pub struct Model {
    version: String,
    scale: f32,
    layers: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
struct Layer {
    /// One row for each output.
    weights: Vec<Vec<f32>>,
    bias: Vec<f32>,
}

impl Model {
    /// Reads what `train.py` wrote.
    ///
    /// # Errors
    /// Says which layer does not fit.
    pub fn from_json(json: &str) -> Result<Self, WeightsError> {
        let model: Self = serde_json::from_str(json)?;
        let mut expected = INPUTS;
        for (layer, Layer { weights, bias }) in model.layers.iter().enumerate() {
            if let Some(row) = weights.iter().find(|row| row.len() != expected) {
                return Err(WeightsError::Inputs {
                    layer,
                    expected,
                    found: row.len(),
                });
            }
            let last = layer + 1 == model.layers.len();
            if weights.len() != bias.len() || last && bias.len() != OUTPUTS {
                return Err(WeightsError::Outputs {
                    layer,
                    rows: weights.len(),
                    biases: bias.len(),
                });
            }
            expected = bias.len();
        }
        Ok(model)
    }

    /// A version that comes with the program: `v12`, `v13`, or `v14`, which is `v13` by another
    /// name.
    pub fn bundled(version: &str) -> Option<Self> {
        let json = match version {
            "v12" => include_str!("../weights/v12.json"),
            "v13" | "v14" => include_str!("../weights/v13.json"),
            _ => return None,
        };
        let mut model = Self::from_json(json).ok()?;
        version.clone_into(&mut model.version);
        Some(model)
    }

    /// The version's name.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How likely each digit is, for pixels 0..=16. The probabilities add up to 1.
    pub fn probabilities(&self, pixels: &[f32]) -> Vec<f32> {
        let mut values: Vec<f32> = pixels.iter().map(|pixel| pixel * self.scale).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            values = layer.forward(&values);
            if index + 1 < self.layers.len() {
                values.iter_mut().for_each(|value| *value = value.max(0.0));
            }
        }
        softmax(&mut values);
        values
    }
}

impl Layer {
    fn forward(&self, inputs: &[f32]) -> Vec<f32> {
        let dot = |row: &[f32]| row.iter().zip(inputs).map(|(w, x)| w * x).sum::<f32>();
        self.weights
            .iter()
            .zip(&self.bias)
            .map(|(row, bias)| dot(row) + bias)
            .collect()
    }
}

/// The most likely digit.
pub fn label(probabilities: &[f32]) -> usize {
    let best = probabilities
        .iter()
        .enumerate()
        .max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map_or(0, |(digit, _)| digit)
}

/// Exponentials that add up to 1, taken from the largest so that none overflows.
fn softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values
        .iter_mut()
        .for_each(|value| *value = (*value - largest).exp());
    let sum: f32 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn labels(version: &str) -> Vec<usize> {
        let model = Model::bundled(version).unwrap();
        let pixels = |sample: &samples::Sample| {
            sample
                .pixels
                .iter()
                .map(|&pixel| f32::from(pixel))
                .collect::<Vec<_>>()
        };
        samples::all()
            .iter()
            .map(|s| label(&model.probabilities(&pixels(s))))
            .collect()
    }

    fn share(equal: impl Iterator<Item = bool>) -> f64 {
        let equal: Vec<bool> = equal.collect();
        equal.iter().filter(|&&equal| equal).count() as f64 / equal.len() as f64
    }

    /// The figures that `train.py` prints.
    #[test]
    fn versions_are_trained_and_differ() {
        let (v12, v13) = (labels("v12"), labels("v13"));
        let truth: Vec<usize> = samples::all()
            .iter()
            .map(|s| usize::from(s.label))
            .collect();
        let right = |version: &[usize]| share(version.iter().zip(&truth).map(|(a, b)| a == b));
        assert!((right(&v12) - 0.987).abs() < 0.003, "{}", right(&v12));
        assert!((right(&v13) - 0.980).abs() < 0.003, "{}", right(&v13));
        let agreement = share(v12.iter().zip(&v13).map(|(a, b)| a == b));
        assert!((agreement - 0.980).abs() < 0.003, "{agreement}");
    }

    #[test]
    fn probabilities_add_up() {
        let model = Model::bundled("v12").unwrap();
        for pixels in [[0.0; INPUTS], [16.0; INPUTS], [1e6; INPUTS]] {
            let probabilities = model.probabilities(&pixels);
            assert_eq!(probabilities.len(), OUTPUTS);
            assert!(
                (probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5,
                "{probabilities:?}"
            );
        }
    }

    #[track_caller]
    fn check_refused(json: &str, expected: &str) {
        assert_eq!(Model::from_json(json).unwrap_err().to_string(), expected);
    }

    #[test]
    fn misfits_are_named() {
        check_refused(
            r#"{"version":"x","scale":1,"layers":[{"weights":[[1,2]],"bias":[0]}]}"#,
            "layer 0 has 2 inputs in a row where 64 come in",
        );
        check_refused(
            r#"{"version":"x","scale":1,"layers":[{"weights":[],"bias":[0]}]}"#,
            "layer 0 has 0 rows and 1 biases",
        );
    }
}
