//! Matrix products with a weight as checkpoints store it, `[out, in]`.

use burn::tensor::{DType, FloatDType, Tensor};
use burn_flex::FlexTensor;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    cpu,
    gemm::{self, Matrix, add_matmul, affine, transposed},
    matmul::{assert_one_dtype, matmul},
    operation::{Operation, Plain, apply},
    simd::update,
};

/// `x·Wᵀ + b`.
///
/// `x` `[M, in]`, `weight` `[out, in]`, `bias` `[out]` → `[M, out]`. All that is on a tape gets a gradient; `x` is kept only
/// for that of the weight.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    linear_by_sample(x, weight, bias, 1)
}

/// [`linear`] of `samples` samples, equally many rows of `x` each: on the CPU in f32 each sample has the bits that it has alone.
pub fn linear_by_sample(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, samples: usize) -> Tensor<2> {
    assert_one_dtype("a linear layer", &[x.dtype(), weight.dtype(), bias.as_ref().map_or(x.dtype(), Tensor::dtype)]);
    let operation = Linear { trained: weight.device().is_autodiff(), samples };
    let [x, weight] = [x, weight].map(Tensor::into_dispatch);
    match bias {
        Some(bias) => apply(operation, [x, weight, bias.into_dispatch()]),
        None => apply(operation, [x, weight]),
    }
}

/// `y + scale·(x·Aᵀ)·Bᵀ`: what a LoRA adapter adds to the output `y` of its layer.
///
/// The adapter acts on the activation, never on the weight: a dense `W + s·B·A` per layer would have to be kept for the
/// backward pass. `y` `[M, out]`, `x` `[M, in]`, `a` `[rank, in]`, `b` `[out, rank]`, in f32 whatever `x` is.
pub fn low_rank(y: Tensor<2>, x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f64) -> Tensor<2> {
    assert_one_dtype("a LoRA layer", &[y.dtype(), x.dtype()]);
    let inputs = [y.into_dispatch(), x.into_dispatch(), a.into_dispatch(), b.into_dispatch()];
    apply(LowRank { scale }, inputs)
}

/// The factors of what a LoRA adapter adds, for [`low_rank_by_sample`].
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    /// `[rank, in]`, f32.
    pub a: &'a Tensor<2>,
    /// `[out, rank]`, f32.
    pub b: &'a Tensor<2>,
    /// What the product is multiplied with.
    pub scale: f64,
}

/// `y + Σ scale·(x·Aᵀ)·Bᵀ` with factors of each sample's own, of any ranks and any number: those of the samples in turn. `y`
/// `[M, out]`, `x` `[M, in]`, equally many rows of each of `samples` samples. On the CPU in f32 each sample has the bits that it
/// has alone. Not for a tape.
pub fn low_rank_by_sample(y: Tensor<2>, x: Tensor<2>, samples: usize, each: &[Vec<Factors<'_>>]) -> Tensor<2> {
    assert_one_dtype("a LoRA layer", &[y.dtype(), x.dtype()]);
    let of = |sample: usize| each[sample % each.len()].as_slice();
    match cpu::floats([y.into_dispatch(), x.into_dispatch()]) {
        Ok([y, x]) => {
            let (mut y, x) = (cpu::exactly(y), cpu::in_order(x));
            let ([_, outputs], [rows, inputs]) = (cpu::dims(&y), cpu::dims(&x));
            let rows = rows / samples;
            let on_cpu = |t: &Tensor<2>| match cpu::floats([t.clone().into_dispatch()]) {
                Ok([t]) => cpu::in_order(t),
                Err(_) => panic!("the factors of an adapter are f32, and where its layer is"),
            };
            let factors = |sample| of(sample).iter().map(|f| (on_cpu(f.a), on_cpu(f.b), f.scale as f32)).collect();
            let factors: Vec<Vec<_>> = (0..samples.min(each.len())).map(factors).collect();
            let places = y.storage_mut().par_chunks_mut((rows * outputs).max(1));
            let places = places.zip(cpu::numbers(&x).par_chunks((rows * inputs).max(1))).enumerate();
            places.for_each(|(sample, (y, x))| {
                for (a, b, scale) in &factors[sample % factors.len()] {
                    let (a, b) = (matrix(a), matrix(b));
                    let u = gemm::matmul(Matrix::new(x, rows, inputs), a.t(), 1.0);
                    add_matmul(y, Matrix::new(&u, rows, a.rows), b.t(), *scale);
                }
            });
            Tensor::from_dispatch(cpu::plain(y))
        }
        Err(both) => {
            let [y, x]: [Tensor<2>; 2] = both.map(Tensor::from_dispatch);
            if let [factors] = each {
                return factors.iter().fold(y, |y, f| low_rank(y, x.clone(), f.a.clone(), f.b.clone(), f.scale));
            }
            let ([_, inputs], [_, outputs]) = (x.dims(), y.dims());
            let (dtype, device): (FloatDType, _) = (x.dtype().into(), x.device());
            let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, (&device, DType::F32));
            // All of a sample as one, and of as many ranks as the largest has.
            let rank = |factors: &[Factors]| factors.iter().map(|f| f.a.dims()[0]).sum::<usize>();
            let most = (0..samples).map(|sample| rank(of(sample))).max().unwrap_or(0);
            if most == 0 {
                return y;
            }
            let padded = |sample: usize| {
                let missing = most - rank(of(sample));
                let a = of(sample).iter().map(|f| f.a.clone()).chain((missing > 0).then(|| zeros([missing, inputs])));
                let b = of(sample).iter().map(|f| f.b.clone() * f.scale);
                let b = b.chain((missing > 0).then(|| zeros([outputs, missing])));
                [Tensor::cat(a.collect(), 0).cast(dtype), Tensor::cat(b.collect(), 1).cast(dtype)]
            };
            let (a, b): (Vec<_>, Vec<_>) = (0..samples).map(|sample| padded(sample).into()).unzip();
            let [a, b] = [a, b].map(|all| Tensor::stack::<3>(all, 0));
            let rows = x.dims()[0] / samples;
            let u = matmul(x.reshape([samples, rows, inputs]), a.transpose());
            y + matmul(u, b.transpose()).reshape([samples * rows, outputs])
        }
    }
}

/// The same weight `[out, in]`, laid out in memory as [`linear`] wants it: on the CPU in f32, column after column. There
/// it is turned around once instead of with every product. A backward pass turns it back.
pub fn laid_out(weight: Tensor<2>) -> Tensor<2> {
    match cpu::floats([weight.into_dispatch()]) {
        Ok([weight]) => {
            let weight = cpu::in_order(weight);
            let weight = matrix(&weight);
            let turned = cpu::tensor(transposed(weight), [weight.columns, weight.rows]);
            Tensor::<2>::from_dispatch(cpu::plain(turned)).transpose()
        }
        Err([weight]) => Tensor::from_dispatch(weight),
    }
}

/// A matrix of numbers that lie row after row or column after column.
fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let [rows, columns] = cpu::dims(tensor);
    let layout = tensor.layout();
    let [down, across] = [0, 1].map(|axis| layout.strides()[axis] as usize);
    Matrix { data: &tensor.storage()[layout.start_offset()..], rows, columns, strides: (down, across) }
}

/// The weight with its rows or its columns one after the other, copied only if neither is.
fn either_way(weight: FlexTensor) -> FlexTensor {
    let strides = weight.layout().strides();
    if strides.contains(&1) && strides.iter().all(|&stride| stride > 0) { weight } else { weight.to_contiguous() }
}

#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// Whether the weight is on a tape.
    pub trained: bool,
    /// Of which the rows are, if each is to have the bits that it has alone; else 1.
    pub samples: usize,
}

/// Of `x`, the weight and perhaps a bias.
impl<const N: usize> Operation<N> for Linear {
    /// `x` if the weight is trained, and the weight.
    type Saved = (Option<Plain>, Plain);

    fn forward(&self, inputs: [Plain; N]) -> (Plain, Self::Saved) {
        let saved = (self.trained.then(|| inputs[0].clone()), inputs[1].clone());
        let output = match cpu::floats(inputs) {
            Ok(inputs) => {
                let x = cpu::in_order(inputs[0].clone());
                let weight = either_way(inputs[1].clone());
                let bias = inputs.get(2).cloned().map(cpu::in_order);
                let (x, weight) = (matrix(&x), matrix(&weight));
                let y = affine(x, weight.t(), bias.as_ref().map(cpu::numbers), self.samples);
                cpu::plain(cpu::tensor(y, [x.rows, weight.rows]))
            }
            #[cfg(feature = "cuda")]
            Err(inputs) if cuda::takes(&inputs) => {
                cuda::linear::affine([0, 1].map(|i| inputs[i].clone()), inputs.get(2).cloned())
            }
            Err(inputs) => {
                let [x, weight] = [0, 1].map(|i| Tensor::<2>::from_dispatch(inputs[i].clone()));
                let y = matmul(x, weight.transpose());
                match inputs.get(2) {
                    Some(bias) => (y + Tensor::<1>::from_dispatch(bias.clone()).unsqueeze()).into_dispatch(),
                    None => y.into_dispatch(),
                }
            }
        };
        (output, saved)
    }

    fn backward(self, (x, weight): Self::Saved, gradient: Plain, wanted: [bool; N]) -> [Option<Plain>; N] {
        let mut wanted = wanted.into_iter();
        let mut wants = || wanted.next() == Some(true);
        let (wants_x, wants_weight, wants_bias) = (wants(), wants(), wants());
        // In place of an `x` that was not kept, something that exists.
        let x = x.filter(|_| wants_weight).unwrap_or_else(|| gradient.clone());
        let gradients = match cpu::floats([gradient, weight, x]) {
            Ok([g, weight, x]) => {
                let (g, weight, x) = (cpu::in_order(g), either_way(weight), cpu::in_order(x));
                let (g, weight, x) = (matrix(&g), matrix(&weight), matrix(&x));
                let plain = |data, rows, columns| cpu::plain(cpu::tensor(data, [rows, columns]));
                [
                    wants_x.then(|| plain(affine(g, weight, None, 1), g.rows, weight.columns)),
                    wants_weight.then(|| plain(gemm::matmul(g.t(), x, 1.0), g.columns, x.columns)),
                    wants_bias.then(|| cpu::plain(cpu::tensor(column_sums(g), [g.columns]))),
                ]
            }
            Err(all) => {
                let [g, weight, x]: [Tensor<2>; 3] = all.map(Tensor::from_dispatch);
                let dtype: FloatDType = g.dtype().into();
                [
                    wants_x.then(|| matmul(g.clone(), weight).into_dispatch()),
                    wants_weight.then(|| matmul(g.clone().transpose(), x).into_dispatch()),
                    // Summed in f32: in bf16 a sum over thousands of rows would lose what is small.
                    wants_bias.then(|| {
                        let sums = g.cast(FloatDType::F32).sum_dim(0).squeeze_dim::<1>(0);
                        sums.cast(dtype).into_dispatch()
                    }),
                ]
            }
        };
        let mut gradients = gradients.into_iter();
        std::array::from_fn(|_| gradients.next().flatten())
    }
}

fn column_sums(matrix: Matrix) -> Vec<f32> {
    cpu::column_sums(
        matrix.rows,
        matrix.columns,
        #[inline(always)]
        |row, sums| {
            update(
                sums,
                [&matrix.data[row * matrix.columns..][..matrix.columns]],
                #[inline(always)]
                |sum, [value]| sum + value,
            )
        },
    )
}

#[derive(Clone, Debug)]
struct LowRank {
    scale: f64,
}

impl LowRank {
    fn scaled(&self, t: Tensor<2>) -> Tensor<2> {
        if self.scale == 1.0 { t } else { t * self.scale }
    }
}

impl Operation<4> for LowRank {
    /// `x`, `x·Aᵀ`, `A`, `B`. On a GPU `A` and `B`, where the operation is composed `A` and `scale·B`, in the type of `x`.
    type Saved = [Plain; 4];

    fn forward(&self, inputs: [Plain; 4]) -> (Plain, Self::Saved) {
        match cpu::floats(inputs) {
            Ok(inputs) => {
                let [mut y, x, a, b] = inputs.map(cpu::in_order);
                let (xm, am, bm) = (matrix(&x), matrix(&a), matrix(&b));
                let (rows, rank) = (xm.rows, am.rows);
                let u = gemm::matmul(xm, am.t(), 1.0);
                // In place where nothing else holds `y`, otherwise on a copy.
                y = cpu::exactly(y);
                add_matmul(y.storage_mut(), Matrix::new(&u, rows, rank), bm.t(), self.scale as f32);
                (cpu::plain(y), [x, cpu::tensor(u, [rows, rank]), a, b].map(cpu::plain))
            }
            #[cfg(feature = "cuda")]
            Err(inputs) if cuda::takes(&inputs) => cuda::linear::low_rank(inputs, self.scale),
            Err([y, x, a, b]) => {
                let [y, x, a, b]: [Tensor<2>; 4] = [y, x, a, b].map(Tensor::from_dispatch);
                let dtype: FloatDType = x.dtype().into();
                // The scale goes where there is least to multiply.
                let [a, b] = [a, self.scaled(b)].map(|t| t.cast(dtype));
                let u = matmul(x.clone(), a.clone().transpose());
                let y = y + matmul(u.clone(), b.clone().transpose());
                (y.into_dispatch(), [x, u, a, b].map(Tensor::into_dispatch))
            }
        }
    }

    fn backward(self, saved: Self::Saved, gradient: Plain, wanted: [bool; 4]) -> [Option<Plain>; 4] {
        let [wants_y, wants_x, wants_a, wants_b] = wanted;
        let [x, u, a, b] = saved;
        let dy = wants_y.then(|| gradient.clone());
        match cpu::floats([gradient, x, u, a, b]) {
            Ok(all) => {
                let [g, x, u, a, b] = all.map(cpu::in_order);
                let [g, x, u, a, b] = [&g, &x, &u, &a, &b].map(matrix);
                let scale = self.scale as f32;
                let du = if wants_x || wants_a { gemm::matmul(g, b, scale) } else { Vec::new() };
                let du = Matrix::new(&du, g.rows, b.columns);
                let product = |a: Matrix, b: Matrix, scale| {
                    cpu::plain(cpu::tensor(gemm::matmul(a, b, scale), [a.rows, b.columns]))
                };
                [
                    dy,
                    wants_x.then(|| product(du, a, 1.0)),
                    wants_a.then(|| product(du.t(), x, 1.0)),
                    // The narrow product is the fast one; its transpose is small.
                    wants_b.then(|| {
                        let turned = gemm::matmul(u.t(), g, scale);
                        let db = transposed(Matrix::new(&turned, u.columns, g.columns));
                        cpu::plain(cpu::tensor(db, [g.columns, u.columns]))
                    }),
                ]
            }
            #[cfg(feature = "cuda")]
            Err(all) if cuda::takes(&all) => {
                let [g, saved @ ..] = all;
                let [dx, da, db] = cuda::linear::low_rank_gradients(g, saved, self.scale, [wants_x, wants_a, wants_b]);
                [dy, dx, da, db]
            }
            Err(all) => {
                let [g, x, u, a, b]: [Tensor<2>; 5] = all.map(Tensor::from_dispatch);
                let du = (wants_x || wants_a).then(|| matmul(g.clone(), b));
                let of = |du: &Option<Tensor<2>>| du.clone().expect("computed for those who want it");
                let factor = |t: Tensor<2>| t.cast(FloatDType::F32);
                [
                    dy,
                    wants_x.then(|| matmul(of(&du), a).into_dispatch()),
                    wants_a.then(|| factor(matmul(of(&du).transpose(), x)).into_dispatch()),
                    wants_b.then(|| self.scaled(factor(matmul(g.transpose(), u))).into_dispatch()),
                ]
            }
        }
    }
}
