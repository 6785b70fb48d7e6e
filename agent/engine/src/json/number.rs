//! Numbers of JSON, read straight into the type that they are to have.
//!
//! Most numbers of a request have at most 19 digits and a small exponent: those are read in one pass with at most one
//! multiplication or division. Whatever that could round wrongly goes to the standard library.

use std::str::FromStr;

use half::f16;

/// A number of JSON, taken apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number<'a> {
    /// Its text: digits, signs, a point and an `e`, of ASCII all.
    text: &'a [u8],
    is_negative: bool,
    /// Its digits without the point.
    mantissa: u64,
    /// The power of ten that they are multiplied by.
    exponent: i32,
    /// Whether `mantissa` holds all digits.
    is_exact: bool,
    /// Whether there is neither point nor exponent.
    is_integer: bool,
}

/// A type that a number can be read into.
pub(super) trait FromNumber: Sized {
    /// The value; `None` where the type has none for it, or only an infinite one.
    fn from_number(number: &Number<'_>) -> Option<Self>;
}

impl<'a> Number<'a> {
    /// Reads the number at the beginning of `json`; `None` where there is none, as the grammar of JSON has it.
    #[inline]
    pub(super) fn read(json: &'a [u8]) -> Option<Self> {
        let mut digits = Digits::default();
        let is_negative = json.first() == Some(&b'-');
        let begin = usize::from(is_negative);
        let mut at = digits.read(json, begin)?;
        if json.get(begin) == Some(&b'0') && at > begin + 1 {
            return None;
        }
        let (mut exponent, mut is_integer) = (0i32, true);
        if json.get(at) == Some(&b'.') {
            is_integer = false;
            let point = at + 1;
            at = digits.read(json, point)?;
            exponent = i32::try_from(at - point).ok()?.checked_neg()?;
        }
        if matches!(json.get(at), Some(b'e' | b'E')) {
            is_integer = false;
            let sign = json.get(at + 1);
            let begin = at + 1 + usize::from(matches!(sign, Some(b'+' | b'-')));
            let mut power = Digits::default();
            at = power.read(json, begin)?;
            // Beyond what any float holds; the digits decide then.
            let known = Some(power.value).filter(|_| power.count <= FEW);
            let power =
                known.and_then(|power| i32::try_from(power).ok()).unwrap_or(i32::MAX).min(i32::MAX / 2);
            exponent = exponent.saturating_add(if sign == Some(&b'-') { -power } else { power });
        }
        let text = json.get(..at)?;
        let exact = if digits.count <= FEW { Some(digits.value) } else { many_digits(text) };
        let (mantissa, is_exact) = (exact.unwrap_or_default(), exact.is_some());
        Some(Self { text, is_negative, mantissa, exponent, is_exact, is_integer })
    }

    /// How many bytes it takes.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// What the standard library makes of it.
    fn parse<T: FromStr>(&self) -> Option<T> {
        std::str::from_utf8(self.text).ok()?.parse().ok()
    }

    fn signed<T: std::ops::Neg<Output = T>>(&self, magnitude: T) -> T {
        if self.is_negative { -magnitude } else { magnitude }
    }

    /// Its digits and the power of ten that they are multiplied or divided by; `None` where they are too many.
    fn parts(&self) -> Option<(f64, usize)> {
        // No float is made of an unsigned number in one step.
        let digits = i64::try_from(self.mantissa).ok()? as f64;
        self.is_exact.then_some((digits, self.exponent.unsigned_abs() as usize))
    }

    /// The integer that it is, also where it is written with a point: clients that know only floats write 3.0. Up to 2^53
    /// that is the integer exactly.
    fn integer(&self) -> Option<i128> {
        if self.is_integer {
            return self.is_exact.then(|| self.signed(i128::from(self.mantissa)));
        }
        let float = f64::from_number(self)?;
        (float.fract() == 0.0 && float.abs() <= INTEGERS).then_some(float as i128)
    }
}

/// The powers of ten that an `f64` holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

/// What is nearest to the powers of a tenth.
const PARTS: [f64; 23] = [
    1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15,
    1e-16, 1e-17, 1e-18, 1e-19, 1e-20, 1e-21, 1e-22,
];

/// Up to here an `f64` holds every integer.
const INTEGERS: f64 = 9_007_199_254_740_992.0;

impl FromNumber for f64 {
    fn from_number(number: &Number<'_>) -> Option<f64> {
        // Both operands are exact, so the one operation rounds once.
        let exact =
            number.parts().filter(|_| number.mantissa <= INTEGERS as u64).and_then(|(digits, power)| {
                let power = POWERS.get(power)?;
                Some(if number.exponent < 0 { digits / power } else { digits * power })
            });
        match exact {
            Some(exact) => Some(number.signed(exact)),
            None => number.parse().filter(|float: &f64| float.is_finite()),
        }
    }
}

impl FromNumber for f32 {
    fn from_number(number: &Number<'_>) -> Option<f32> {
        /// Half a unit of an `f32` in the bits that an `f64` has more, and those bits.
        const HALF: u64 = 1 << 28;
        const MORE: u64 = 2 * HALF - 1;
        /// Farther from the middle between two floats than this, a value is rounded rightly though it is off by a little:
        /// by three roundings here.
        const MARGIN: u64 = 8;
        // To multiply is quicker than to divide. What comes of it is no subnormal: it is at least 10^-22, or 0.
        let near = number.parts().and_then(|(digits, power)| {
            Some(digits * if number.exponent < 0 { PARTS.get(power)? } else { POWERS.get(power)? })
        });
        let float = match near {
            Some(near) if (near.to_bits() & MORE).abs_diff(HALF) > MARGIN => number.signed(near as f32),
            _ => number.parse()?,
        };
        Some(float).filter(|float| float.is_finite())
    }
}

impl FromNumber for f16 {
    fn from_number(number: &Number<'_>) -> Option<f16> {
        f64::from_number(number).map(f16::from_f64).filter(|float| float.is_finite())
    }
}

macro_rules! integers {
    ($($integer:ty)+) => { $(
        impl FromNumber for $integer {
            fn from_number(number: &Number<'_>) -> Option<$integer> {
                number.integer().and_then(|integer| integer.try_into().ok())
            }
        }
    )+ };
}

integers!(i8 i16 i32 i64 u8 u16 u32 u64);

/// As many digits as any `u64` holds.
const FEW: usize = 19;

/// Digits that are being read.
#[derive(Debug, Default)]
struct Digits {
    /// Their value, where there are no more than [`FEW`].
    value: u64,
    count: usize,
}

impl Digits {
    /// Reads digits from `begin` on, one at the least, after those that were read before; says where they end.
    fn read(&mut self, json: &[u8], begin: usize) -> Option<usize> {
        let mut rest = json.get(begin..)?;
        let all = rest.len();
        while let Some((eight, after)) = rest.split_first_chunk() {
            let Some(eight) = eight_digits(eight) else { break };
            self.value = self.value.wrapping_mul(100_000_000).wrapping_add(eight);
            rest = after;
        }
        while let Some((byte, after)) = rest.split_first() {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            self.value = self.value.wrapping_mul(10).wrapping_add(u64::from(digit));
            rest = after;
        }
        let count = all - rest.len();
        self.count += count;
        (count > 0).then_some(begin + count)
    }
}

/// The digits of a number that has more than [`FEW`], or zeros in front of fewer; `None` where no `u64` holds them.
fn many_digits(text: &[u8]) -> Option<u64> {
    let digits =
        text.iter().take_while(|byte| !matches!(byte, b'e' | b'E')).filter(|byte| byte.is_ascii_digit());
    digits
        .map(|byte| u64::from(byte - b'0'))
        .try_fold(0u64, |value, digit| value.checked_mul(10)?.checked_add(digit))
}

/// The value of eight digits, read at once: sums of neighbours, then of pairs, then of fours.
fn eight_digits(text: &[u8; 8]) -> Option<u64> {
    let bytes = u64::from_le_bytes(*text);
    let digits = bytes.wrapping_sub(0x3030_3030_3030_3030);
    // A byte above '9' carries into its high bit when 6 is added, one below '0' has borrowed into it.
    if (digits | digits.wrapping_add(0x7676_7676_7676_7676)) & 0x8080_8080_8080_8080 != 0 {
        return None;
    }
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    Some((fours * 10_000 + (fours >> 32)) & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<T: FromNumber>(text: &str) -> Option<T> {
        let number = Number::read(text.as_bytes())?;
        assert_eq!(number.len(), text.len());
        T::from_number(&number)
    }

    #[test]
    fn the_grammar_is_that_of_json() {
        for text in
            ["0", "-0", "7", "-12.5", "1e3", "1E+03", "1.25e-7", "0.0", "123456789012345678901234567890"]
        {
            assert_eq!(read::<f64>(text), text.parse().ok(), "{text}");
        }
        for text in ["", "-", "+1", ".5", "1.", "1.e3", "1e", "1e+", "01", "-01", "NaN", "inf", "x"] {
            let number = Number::read(text.as_bytes());
            assert!(number.is_none(), "{text}: {number:?}");
        }
        assert_eq!(Number::read(b"1,2").unwrap().len(), 1);
        assert_eq!(Number::read(b"0.5]").unwrap().len(), 3);
    }

    #[test]
    fn integers_fit_or_are_refused() {
        assert_eq!(read::<u64>("18446744073709551615"), Some(u64::MAX));
        assert_eq!(read::<u64>("18446744073709551616"), None);
        assert_eq!(read::<i64>("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(read::<i64>("-9223372036854775809"), None);
        assert_eq!((read::<u8>("255"), read::<u8>("256"), read::<u8>("-1")), (Some(255), None, None));
        assert_eq!((read::<i32>("3.0"), read::<i32>("3e2"), read::<i32>("3.5")), (Some(3), Some(300), None));
        assert_eq!(read::<i64>("1e300"), None);
    }

    #[test]
    fn extremes_are_what_the_standard_library_says() {
        for text in [
            "1e-45",
            "1.1754943508222875e-38",
            "3.4028235677973366e38",
            "1e400",
            "-1e-400",
            "4.9406564584124654e-324",
            "9007199254740993",
            "90071992547409.93",
            "16777217",
            "0.000000000000000000000000000001",
            "1e99999999999999999999",
            "33554431.0000000001",
            "1.00000005960464477540",
            "9999999999999999999999e-22",
            "0.00000000000000000000000000125",
            "1e00000000000000000000000000000000000000002",
        ] {
            same(text).unwrap();
        }
    }

    fn same(text: &str) -> Result<(), TestCaseError> {
        let expected = text.parse().ok().filter(|float: &f64| float.is_finite());
        prop_assert_eq!(read::<f64>(text).map(f64::to_bits), expected.map(f64::to_bits), "{}", text);
        let expected = text.parse().ok().filter(|float: &f32| float.is_finite());
        prop_assert_eq!(read::<f32>(text).map(f32::to_bits), expected.map(f32::to_bits), "{}", text);
        Ok(())
    }

    proptest! {
        #[test]
        fn any_number_is_what_the_standard_library_says(text in "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?") {
            same(&text)?;
        }

        #[test]
        fn any_float_reads_back(bits in any::<u32>(), long in any::<u64>()) {
            let (float, double) = (f32::from_bits(bits), f64::from_bits(long));
            prop_assume!(float.is_finite() && double.is_finite());
            same(&float.to_string())?;
            same(&f64::from(float).to_string())?;
            same(&double.to_string())?;
            // The middle between two floats, which is rounded to the even one, and what stands beside it.
            let middle = f64::midpoint(f64::from(float), f64::from(f32::from_bits(bits ^ 1)));
            for near in [middle, middle.next_up(), middle.next_down()] {
                same(&format!("{near:.20e}").replace("e-", "E-"))?;
            }
        }
    }
}
