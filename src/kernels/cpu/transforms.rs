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

/// Applies `f` to each column, then to each row of the result.
#[inline(always)]
pub fn both_ways<const M: usize, const N: usize>(
    x: &[[Lanes; M]; M],
    f: impl Fn([Lanes; M]) -> [Lanes; N],
) -> [[Lanes; N]; N] {
    let mut half = [[[0.0; LANES]; M]; N];
    for j in 0..M {
        let mut column = [[0.0; LANES]; M];
        for i in 0..M {
            column[i] = x[i][j];
        }
        let column = f(column);
        for i in 0..N {
            half[i][j] = column[i];
        }
    }
    let mut y = [[[0.0; LANES]; N]; N];
    for i in 0..N {
        y[i] = f(half[i]);
    }
    y
}

/// `Bᵀ` applied to a column.
#[inline(always)]
pub fn b_transposed([a, b, c, d]: [Lanes; 4]) -> [Lanes; 4] {
    [minus(a, c), plus(b, c), minus(c, b), minus(b, d)]
}

/// `A` applied to a column.
#[inline(always)]
pub fn a([a, b]: [Lanes; 2]) -> [Lanes; 4] {
    [a, plus(a, b), minus(a, b), minus([0.0; LANES], b)]
}

/// `Aᵀ` applied to a column.
#[inline(always)]
pub fn a_transposed([a, b, c, d]: [Lanes; 4]) -> [Lanes; 2] {
    [plus(plus(a, b), c), minus(minus(b, c), d)]
}

/// `G` applied to a column.
#[inline(always)]
pub fn g([a, b, c]: [Lanes; 3]) -> [Lanes; 4] {
    let (edges, middle) = (half(plus(a, c)), half(b));
    [a, plus(edges, middle), minus(edges, middle), c]
}

/// `Gᵀ` applied to a column.
#[inline(always)]
pub fn g_transposed([a, b, c, d]: [Lanes; 4]) -> [Lanes; 3] {
    let sum = half(plus(b, c));
    [plus(a, sum), half(minus(b, c)), plus(sum, d)]
}
