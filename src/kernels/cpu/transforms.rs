//! The transforms of Winograd's F(2×2, 3×3), for several tiles or kernels at once; `winograd` documents the matrices.

/// The elements at the same position of adjacent tiles or kernels.
pub type Lanes = [f32; LANES];
pub const LANES: usize = 8;

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut c = [0.0; LANES];
    for i in 0..LANES {
        c[i] = f(a[i], b[i]);
    }
    c
}

#[inline(always)]
fn plus(a: Lanes, b: Lanes) -> Lanes {
    zip(
        a,
        b,
        #[inline(always)]
        |a, b| a + b,
    )
}

#[inline(always)]
fn minus(a: Lanes, b: Lanes) -> Lanes {
    zip(
        a,
        b,
        #[inline(always)]
        |a, b| a - b,
    )
}

#[inline(always)]
fn half(a: Lanes) -> Lanes {
    zip(
        a,
        a,
        #[inline(always)]
        |a, _| 0.5 * a,
    )
}

/// `$f` of each of the `$m` columns of `$x`, then of each of the `$n` rows of the result. Written out, not as loops: where a compiler
/// leaves those as they are, each tile goes through memory, and a transform takes half as long again.
macro_rules! both_ways {
    ($x:expr, $f:expr, $m:tt => $n:tt) => {{
        let half = columns!($x, $f, $m, $m);
        columns!(half, $f, $n, $m)
    }};
}

/// `f` of the columns `$j` of `$x`, which has the rows `$rows`.
macro_rules! columns {
    ($x:expr, $f:expr, [$($j:tt)*], $rows:tt) => {
        [$($f(column!($x, $j, $rows))),*]
    };
}

/// The column `$j` of `$x`, which has the rows `$i`.
macro_rules! column {
    ($x:expr, $j:tt, [$($i:tt)*]) => {
        [$($x[$i][$j]),*]
    };
}

/// `Bᵀ` applied to a column.
#[inline(always)]
fn b_transposed([a, b, c, d]: [Lanes; 4]) -> [Lanes; 4] {
    [minus(a, c), plus(b, c), minus(c, b), minus(b, d)]
}

/// `A` applied to a column.
#[inline(always)]
fn a([a, b]: [Lanes; 2]) -> [Lanes; 4] {
    [a, plus(a, b), minus(a, b), minus([0.0; LANES], b)]
}

/// `Aᵀ` applied to a column.
#[inline(always)]
fn a_transposed([a, b, c, d]: [Lanes; 4]) -> [Lanes; 2] {
    [plus(plus(a, b), c), minus(minus(b, c), d)]
}

/// `G` applied to a column.
#[inline(always)]
fn g([a, b, c]: [Lanes; 3]) -> [Lanes; 4] {
    let (edges, middle) = (half(plus(a, c)), half(b));
    [a, plus(edges, middle), minus(edges, middle), c]
}

/// `Gᵀ` applied to a column.
#[inline(always)]
fn g_transposed([a, b, c, d]: [Lanes; 4]) -> [Lanes; 3] {
    let sum = half(plus(b, c));
    [plus(a, sum), half(minus(b, c)), plus(sum, d)]
}

/// `BᵀxB`: the input of a tile.
#[inline(always)]
pub fn input(x: &[[Lanes; 4]; 4]) -> [[Lanes; 4]; 4] {
    both_ways!(x, b_transposed, [0 1 2 3] => [0 1 2 3])
}

/// `A·dy·Aᵀ`: the gradient of a tile.
#[inline(always)]
pub fn gradient(dy: &[[Lanes; 2]; 2]) -> [[Lanes; 4]; 4] {
    both_ways!(dy, a, [0 1] => [0 1 2 3])
}

/// `AᵀmA`: the output of a tile.
#[inline(always)]
pub fn output(m: &[[Lanes; 4]; 4]) -> [[Lanes; 2]; 2] {
    both_ways!(m, a_transposed, [0 1 2 3] => [0 1])
}

/// `GwGᵀ`: a kernel.
#[inline(always)]
pub fn kernel(w: &[[Lanes; 3]; 3]) -> [[Lanes; 4]; 4] {
    both_ways!(w, g, [0 1 2] => [0 1 2 3])
}

/// `GᵀuG`: the gradient of a kernel.
#[inline(always)]
pub fn kernel_gradient(u: &[[Lanes; 4]; 4]) -> [[Lanes; 3]; 3] {
    both_ways!(u, g_transposed, [0 1 2 3] => [0 1 2])
}
