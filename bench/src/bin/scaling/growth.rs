//! Whether a figure stays or grows with what grows: a pure judgement of a column of the table.

/// How far figures that should be the same may lie apart, and a figure from the line on which it
/// should be.
const TOLERATED: f64 = 0.25;

/// What a figure may lie beside the line by in any case, in terms of the first: where the base is
/// small beside what is added, its noise must not decide.
const BASE_NOISE: f64 = 0.3;

/// One figure: of which size, and what the rounds showed.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub size: f64,
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

/// What a column does from its first row to its last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Growth {
    /// The largest median is `1 + spread` times the smallest: little, or less than the rounds of a
    /// row lie apart.
    Flat { spread: f64 },
    /// On the line through the first row and the last, which rises by `each` for one more.
    Linear { each: f64 },
    /// Neither: it grows by `factor` while the size grows by `size`.
    Bent { factor: f64, size: f64 },
    /// Fewer than two rows, or a figure that there cannot be.
    Unknown,
}

/// Judges figures in the order of the rows, sizes rising.
pub fn judge(points: &[Point]) -> Growth {
    let [first, .., last] = points else {
        return Growth::Unknown;
    };
    if !points.iter().all(|point| point.least > 0.0) {
        return Growth::Unknown;
    }
    let least = |of: fn(&Point) -> f64| points.iter().map(of).fold(f64::INFINITY, f64::min);
    let most = |of: fn(&Point) -> f64| points.iter().map(of).fold(0.0, f64::max);
    let spread = most(|point| point.median) / least(|point| point.median) - 1.0;
    let ranges_share_a_value = most(|point| point.least) <= least(|point| point.most);
    if spread <= TOLERATED || ranges_share_a_value {
        return Growth::Flat { spread };
    }
    let each = (last.median - first.median) / (last.size - first.size);
    let is_near = |point: &Point| {
        let expected = first.median + each * (point.size - first.size);
        let noise = TOLERATED * expected.abs() + BASE_NOISE * first.median;
        (point.median - expected).abs() <= noise
    };
    // Two rows are always on a line.
    if points.len() > 2 && points.iter().all(is_near) {
        return Growth::Linear { each };
    }
    Growth::Bent {
        factor: last.median / first.median,
        size: last.size / first.size,
    }
}

impl Growth {
    /// In words; `each` says what one more of the size costs, where that is asked for.
    pub fn words(self, each: impl FnOnce(f64) -> String) -> String {
        match self {
            Growth::Flat { spread } if spread > TOLERATED => {
                format!("flat within its noise ({:.0} %)", 100.0 * spread)
            }
            Growth::Flat { spread } => format!("flat, within {:.0} %", 100.0 * spread),
            Growth::Linear { each: slope } => format!("linear, {}", each(slope)),
            Growth::Bent { factor, size } => {
                format!(
                    "**neither flat nor linear**: {factor:.2} times for {size:.0} times as many"
                )
            }
            Growth::Unknown => "not to be judged".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one round.
    fn judge(points: &[(f64, f64)]) -> Growth {
        let point = |&(size, figure)| Point {
            size,
            least: figure,
            median: figure,
            most: figure,
        };
        super::judge(&points.iter().map(point).collect::<Vec<_>>())
    }

    #[test]
    fn what_lies_within_the_rounds_own_noise_is_flat() {
        let point = |size, least, median, most| Point {
            size,
            least,
            median,
            most,
        };
        let noisy = [
            point(1.0, 23.0, 120.0, 217.0),
            point(10.0, 41.0, 45.0, 50.0),
            point(1000.0, 32.0, 67.0, 103.0),
        ];
        let growth = super::judge(&noisy);
        assert!(matches!(growth, Growth::Flat { .. }), "{growth:?}");
        let apart = [noisy[1], point(1000.0, 60.0, 67.0, 103.0)];
        let growth = super::judge(&apart);
        assert!(matches!(growth, Growth::Bent { .. }), "{growth:?}");
    }

    #[test]
    fn what_stays_is_flat_within_a_quarter() {
        let flat = judge(&[(1.0, 100.0), (1000.0, 96.0), (100_000.0, 120.0)]);
        assert_eq!(flat, Growth::Flat { spread: 0.25 });
        let risen = judge(&[(1.0, 100.0), (1000.0, 100.0), (100_000.0, 126.0)]);
        assert!(!matches!(risen, Growth::Flat { .. }), "{risen:?}");
    }

    #[test]
    fn a_base_with_so_much_for_each_is_linear() {
        let linear = judge(&[(1.0, 15.0), (1001.0, 17.0), (10_001.0, 35.0)]);
        assert_eq!(linear, Growth::Linear { each: 0.002 });
        let falling = judge(&[(1.0, 30.0), (2.0, 20.0), (3.0, 10.0)]);
        assert_eq!(falling, Growth::Linear { each: -10.0 });
    }

    #[test]
    fn what_bends_is_named_with_its_factors() {
        // Quadratic.
        let bent = judge(&[(1.0, 1.0), (10.0, 100.0), (100.0, 10_000.0)]);
        let expected = Growth::Bent {
            factor: 10_000.0,
            size: 100.0,
        };
        assert_eq!(bent, expected);
        // A step that does not go on.
        let step = judge(&[(1.0, 1.0), (1000.0, 3.0), (100_000.0, 3.0)]);
        assert!(matches!(step, Growth::Bent { .. }), "{step:?}");
        // Quadratic above a base that hides its beginning.
        let (low, high) = ((1000.0, 44.0), (10_000.0, 90.0));
        let bent = judge(&[(1.0, 47.0), low, high, (100_000.0, 4361.0)]);
        assert!(matches!(bent, Growth::Bent { .. }), "{bent:?}");
    }

    #[test]
    fn a_noisy_base_does_not_hide_a_line() {
        let (low, high) = ((1000.0, 70.0), (10_000.0, 478.0));
        let linear = judge(&[(1.0, 47.0), low, high, (100_000.0, 4361.0)]);
        assert!(matches!(linear, Growth::Linear { .. }), "{linear:?}");
    }

    #[test]
    fn two_rows_that_differ_are_no_line() {
        let two = judge(&[(1.0, 1.0), (2.0, 2.0)]);
        assert!(matches!(two, Growth::Bent { .. }), "{two:?}");
        assert_eq!(judge(&[(1.0, 1.0)]), Growth::Unknown);
        assert_eq!(judge(&[(1.0, 0.0), (2.0, 2.0)]), Growth::Unknown);
        assert_eq!(judge(&[(1.0, f64::NAN), (2.0, 2.0)]), Growth::Unknown);
    }
}
