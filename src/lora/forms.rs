//! From the tensors of one module of an adapter file to changes of single layers.

use super::{
    index::{Form, Module},
    matrix::Matrix,
    role::Role,
};
use crate::{error::Result, weights::TensorFile};

/// A change of one layer, before its scale. The weight of a convolution is a matrix here, `[out, in · kernel²]`.
pub(super) enum Change {
    /// `[rank, in]` and `[out, rank]`.
    LowRank {
        down: Matrix,
        up: Matrix,
    },
    /// The Kronecker product of both.
    Kronecker {
        left: Matrix,
        right: Matrix,
    },
    Dense(Matrix),
    /// A change of the bias: one column.
    Bias(Matrix),
}

/// A change of one of a module's layers.
pub(super) struct Piece {
    /// The name of the layer.
    pub name: String,
    pub change: Change,
    /// Factor of the change.
    pub scale: f64,
    /// For DoRA: the norm of each row of the changed weight.
    pub magnitude: Option<Vec<f32>>,
}

/// Reads a module. Fused layers are split; those that were never trained are left out.
///
/// # Errors
/// The file cannot be read. The inner error is the reason why the module cannot be applied.
pub(super) fn pieces(file: &TensorFile, module: &Module) -> Result<std::result::Result<Vec<Piece>, String>> {
    let mut broken = None;
    let mut read = |role: Role| -> Result<Matrix> {
        let name = &module.parts[&role];
        let matrix = Matrix::from_data(file.read_f32(name)?);
        if !matrix.is_finite() {
            broken = Some(format!("holds values that are not finite in `{name}`"));
        }
        Ok(matrix)
    };
    let has = |role: Role| module.parts.contains_key(&role);
    let change = match module.form {
        Form::LowRank => Some(Change::LowRank { down: read(Role::Down)?, up: read(Role::Up)? }),
        Form::Tucker => {
            let (down, up) = (contracted(&read(Role::Mid)?, &read(Role::Down)?), read(Role::Up)?);
            down.map(|down| Change::LowRank { down, up })
        }
        Form::Kronecker => {
            let left = match has(Role::Left) {
                true => Some(read(Role::Left)?),
                false => read(Role::LeftA)?.product(&read(Role::LeftB)?),
            };
            let right = match (has(Role::Right), has(Role::RightCore)) {
                (true, _) => Some(read(Role::Right)?),
                (false, true) => tucker(&read(Role::RightCore)?, &read(Role::RightA)?, &read(Role::RightB)?),
                (false, false) => read(Role::RightA)?.product(&read(Role::RightB)?),
            };
            left.zip(right).map(|(left, right)| Change::Kronecker { left, right })
        }
        Form::Hadamard if has(Role::FirstCore) => {
            let one = tucker(&read(Role::FirstCore)?, &read(Role::FirstA)?, &read(Role::FirstB)?);
            let other = tucker(&read(Role::SecondCore)?, &read(Role::SecondA)?, &read(Role::SecondB)?);
            one.zip(other).and_then(|(one, other)| one.elementwise(&other)).map(Change::Dense)
        }
        Form::Hadamard => {
            hadamard(&[read(Role::FirstA)?, read(Role::SecondA)?], &[read(Role::FirstB)?, read(Role::SecondB)?])
        }
        Form::Full => Some(Change::Dense(read(Role::Full)?)),
        Form::Bias => Some(Change::Bias(read(Role::Bias)?)),
    };
    // A change of the bias beside one of the weight.
    let bias = match (has(Role::Bias) && module.form != Form::Bias, has(Role::UpBias)) {
        (true, _) => Some((read(Role::Bias)?, 1.0)),
        (_, true) => Some((read(Role::UpBias)?, module.scale)),
        _ => None,
    };
    let magnitude = if has(Role::Magnitude) { Some(read(Role::Magnitude)?) } else { None };
    if let Some(problem) = broken {
        return Ok(Err(problem));
    }
    let Some(change) = change else { return Ok(Err("has matrices that do not fit each other".into())) };
    let width = change.inputs();
    let bias = match bias {
        Some((bias, _)) if bias.rows != change.outputs() => {
            return Ok(Err(format!("changes {} outputs, but the biases of {}", change.outputs(), bias.rows)));
        }
        Some((bias, scale)) => apart(module, Change::Bias(bias), width, scale, None),
        None => Ok(Vec::new()),
    };
    let weight = apart(module, change, width, module.scale, magnitude);
    Ok(weight.and_then(|weight| Ok(weight.into_iter().chain(bias?).collect())))
}

/// A core `[i, j · kernel²]` contracted over `j` with `by` `[j, in]`: `[i, in · kernel²]`. As matrices have two axes, those of `j` and
/// of the kernel are one.
fn contracted(core: &Matrix, by: &Matrix) -> Option<Matrix> {
    let kernel = core.columns.checked_div(by.rows).filter(|kernel| kernel * by.rows == core.columns)?;
    let mut result = Matrix::zeros(core.rows, by.columns * kernel);
    for i in 0..core.rows {
        for j in 0..by.rows {
            for (input, &factor) in by.row(j).iter().enumerate() {
                let from = &core.row(i)[j * kernel..][..kernel];
                let to = &mut result.values[(i * by.columns + input) * kernel..][..kernel];
                to.iter_mut().zip(from).for_each(|(to, &from)| *to += factor * from);
            }
        }
    }
    Some(result)
}

/// `Σ core[i, j]·a[i]·b[j]`: a core `[i, j · kernel²]`, `a` `[i, out]` and `b` `[j, in]` to `[out, in · kernel²]`.
fn tucker(core: &Matrix, a: &Matrix, b: &Matrix) -> Option<Matrix> {
    a.transposed().product(&contracted(core, b)?)
}

/// `(B₁·A₁) ∘ (B₂·A₂)`, which is itself low-rank, of rank `r₁·r₂`: row (i, j) of its A is row i of A₁ times row j of A₂. Where these
/// factors are larger than the full matrix, the full matrix.
fn hadamard(ups: &[Matrix; 2], downs: &[Matrix; 2]) -> Option<Change> {
    let ([up_1, up_2], [down_1, down_2]) = (ups, downs);
    let (outputs, inputs) = (up_1.rows, down_1.columns);
    let rank = down_1.rows * down_2.rows;
    if rank * (outputs + inputs) >= outputs * inputs {
        return up_1.product(down_1)?.elementwise(&up_2.product(down_2)?).map(Change::Dense);
    }
    let down = down_1.rows_times_rows(down_2)?;
    let up = up_1.transposed().rows_times_rows(&up_2.transposed())?.transposed();
    Some(Change::LowRank { down, up })
}

/// Divides a change among the layers of its module, whose number of inputs is `width`, if that is known.
fn apart(
    module: &Module,
    change: Change,
    width: Option<usize>,
    scale: f64,
    magnitude: Option<Matrix>,
) -> std::result::Result<Vec<Piece>, String> {
    let layers = &module.place.layers;
    let swapped = module.place.swapped;
    let outputs = change.outputs();
    let lengths = match magnitude {
        Some(lengths) if lengths.values.len() == outputs && lengths.rows == outputs => {
            Some(if swapped { lengths.halves_swapped().values } else { lengths.values })
        }
        Some(lengths) => {
            return Err(format!(
                "scales the columns of the weight ({} × {} magnitudes for {outputs} outputs); kiln reads DoRA that scales rows",
                lengths.rows, lengths.columns
            ));
        }
        None => None,
    };
    if let [name] = layers.as_slice() {
        let change = if swapped { change.halves_swapped() } else { change };
        return Ok(vec![Piece { name: name.clone(), change, scale, magnitude: lengths }]);
    }
    // Queries, keys and values are as wide as the input; the remaining rows are the feed-forward part of a single block. In FLUX that
    // part is four times as wide, which gives the width if only biases change.
    let count = layers.len();
    let width = width.unwrap_or(outputs / if count == 3 { 3 } else { 7 });
    let rest = outputs.checked_sub(3 * width).filter(|&rest| (rest == 0) == (count == 3));
    let rest = rest.ok_or_else(|| format!("has {outputs} rows, which are not {count} layers of width {width}"))?;
    let heights = [width, width, width, rest];
    let change = match change {
        Change::Kronecker { left, right } if heights[..count].iter().any(|height| height % right.rows != 0) => {
            Change::Dense(left.kronecker(&right))
        }
        other => other,
    };
    let changes: Vec<Option<Change>> = match change {
        Change::LowRank { down, up } => low_rank_apart(&down, &up, &heights[..count]),
        Change::Kronecker { left, right } => blocks(&heights[..count], right.rows)
            .map(|rows| Some(Change::Kronecker { left: left.rows(rows), right: right.clone() }))
            .collect(),
        Change::Dense(dense) => {
            blocks(&heights[..count], 1).map(|rows| Some(Change::Dense(dense.rows(rows)))).collect()
        }
        Change::Bias(bias) => blocks(&heights[..count], 1).map(|rows| Some(Change::Bias(bias.rows(rows)))).collect(),
    };
    let lengths_of = |rows: std::ops::Range<usize>| lengths.as_ref().map(|lengths| lengths[rows].to_vec());
    let piece = |((name, change), rows): ((&String, Option<Change>), _)| {
        let magnitude = lengths_of(rows);
        // Row norms change a layer even if nothing is added to it.
        let change = match (change, &magnitude) {
            (Some(change), _) => change,
            (None, Some(lengths)) => {
                Change::LowRank { down: Matrix::zeros(1, width), up: Matrix::zeros(lengths.len(), 1) }
            }
            (None, None) => return None,
        };
        Some(Piece { name: name.clone(), change, scale, magnitude })
    };
    Ok(layers.iter().zip(changes).zip(blocks(&heights[..count], 1)).filter_map(piece).collect())
}

/// The row ranges of stacked blocks, in units of `unit` rows.
fn blocks(heights: &[usize], unit: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut top = 0;
    heights.iter().map(move |height| {
        let start = top;
        top += height / unit;
        start..top
    })
}

/// Splits a fused low-rank pair. Either `up` is block-diagonal, one block for each layer, and `down` is split as the columns of `up`;
/// or all layers share `down`.
fn low_rank_apart(down: &Matrix, up: &Matrix, heights: &[usize]) -> Vec<Option<Change>> {
    let (count, whole, width) = (heights.len(), down.rows, down.columns);
    let rank = whole / count;
    let block = |i: usize| i * rank..(i + 1) * rank;
    let zero = |row: usize, i: usize| {
        up.row(row).iter().enumerate().all(|(column, &v)| v == 0.0 || block(i).contains(&column))
    };
    let diagonal =
        whole.is_multiple_of(count) && blocks(heights, 1).enumerate().all(|(i, mut rows)| rows.all(|row| zero(row, i)));
    let part = |(i, rows): (usize, std::ops::Range<usize>)| {
        if !diagonal {
            return Some(Change::LowRank { down: down.clone(), up: up.block(rows, 0..whole) });
        }
        let (a, b) = (down.block(block(i), 0..width), up.block(rows.clone(), block(i)));
        // Padding to a common rank is removed. A layer that was never trained is all padding.
        let used = (0..rank).rev().find(|&k| a.row(k).iter().any(|&v| v != 0.0) || b.column(k).any(|v| v != 0.0));
        let rank = used? + 1;
        Some(Change::LowRank { down: a.block(0..rank, 0..width), up: b.block(0..rows.len(), 0..rank) })
    };
    blocks(heights, 1).enumerate().map(part).collect()
}

impl Change {
    fn outputs(&self) -> usize {
        match self {
            Self::LowRank { up, .. } => up.rows,
            Self::Kronecker { left, right } => left.rows * right.rows,
            Self::Dense(matrix) | Self::Bias(matrix) => matrix.rows,
        }
    }

    /// `None` for a bias, which fits any number.
    fn inputs(&self) -> Option<usize> {
        match self {
            Self::LowRank { down, .. } => Some(down.columns),
            Self::Kronecker { left, right } => Some(left.columns * right.columns),
            Self::Dense(dense) => Some(dense.columns),
            Self::Bias(_) => None,
        }
    }

    fn halves_swapped(self) -> Self {
        match self {
            Self::LowRank { down, up } => Self::LowRank { down, up: up.halves_swapped() },
            Self::Kronecker { left, right } if left.rows.is_multiple_of(2) => {
                Self::Kronecker { left: left.halves_swapped(), right }
            }
            Self::Kronecker { left, right } => Self::Dense(left.kronecker(&right).halves_swapped()),
            Self::Dense(dense) => Self::Dense(dense.halves_swapped()),
            Self::Bias(bias) => Self::Bias(bias.halves_swapped()),
        }
    }
}
