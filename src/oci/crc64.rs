//! [`Crc64`]: the check sum of tar-split's lists.

/// CRC-64 with the polynomial of ISO 3309, bits reflected, all ones before and after: eight bytes at a time.
#[derive(Debug, Clone)]
pub struct Crc64(u64);

const POLYNOMIAL: u64 = 0xD800_0000_0000_0000;

/// `TABLES[n][byte]`: the register after `byte` and `n` zero bytes.
static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let (mut register, mut bit) = (byte as u64, 0);
        while bit < 8 {
            register = if register & 1 == 1 { register >> 1 ^ POLYNOMIAL } else { register >> 1 };
            bit += 1;
        }
        tables[0][byte] = register;
        byte += 1;
    }
    let mut zeros = 1;
    while zeros < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[zeros - 1][byte];
            tables[zeros][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        zeros += 1;
    }
    tables
}

/// The polynomial x, the highest bit being the coefficient of 1.
const X: u64 = 1 << 62;

/// The product of two polynomials modulo [`POLYNOMIAL`].
fn times(a: u64, mut b: u64) -> u64 {
    let mut product = 0;
    for power in 0..64 {
        if a << power & 1 << 63 != 0 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
    }
    product
}

impl Default for Crc64 {
    fn default() -> Crc64 {
        Crc64::new()
    }
}

impl Crc64 {
    /// Of nothing yet.
    pub fn new() -> Crc64 {
        Crc64(!0)
    }

    /// Take in `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            let word = (u64::from_le_bytes(word) ^ self.0).to_le_bytes();
            self.0 = (0..8).fold(0, |register, at| register ^ TABLES[7 - at][usize::from(word[at])]);
        }
        for byte in chunks.remainder() {
            self.0 = self.0 >> 8 ^ TABLES[0][usize::from(self.0 as u8 ^ byte)];
        }
    }

    /// The sum.
    pub fn value(&self) -> u64 {
        !self.0
    }

    /// The sum of two texts, one after the other, from the sum of each: so that parts can be summed side by side.
    pub fn joined(first: u64, second: u64, length_of_second: u64) -> u64 {
        // The first counts as if as many zero bits followed as the second has, which is a product with x to that power.
        // What the inversions before and after do to it cancels out.
        let (mut product, mut power, mut exponent) = (first, X, length_of_second.saturating_mul(8));
        while exponent > 0 {
            if exponent & 1 == 1 {
                product = times(product, power);
            }
            power = times(power, power);
            exponent >>= 1;
        }
        product ^ second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook's way, a bit at a time.
    fn slow_crc64(bytes: &[u8]) -> u64 {
        let register = bytes.iter().fold(!0u64, |register, byte| {
            (0..8).fold(
                register ^ u64::from(*byte),
                |r, _| if r & 1 == 1 { r >> 1 ^ 0xD800_0000_0000_0000 } else { r >> 1 },
            )
        });
        !register
    }

    #[test]
    fn crc64_is_that_of_iso_3309() {
        // The check value of CRC-64/GO-ISO in the catalogue of parametrised CRC algorithms.
        let mut sum = Crc64::new();
        sum.update(b"123456789");
        assert_eq!(sum.value(), 0xb909_56c7_75a4_1001);
        let bytes: Vec<u8> = (0..1000u32).map(|n| (n * 7 + n / 9) as u8).collect();
        for (from, to) in [(0, 0), (0, 1), (3, 11), (0, 8), (1, 1000), (5, 998)] {
            let mut sum = Crc64::new();
            let middle = (from + to) / 2;
            sum.update(&bytes[from..middle]);
            sum.update(&bytes[middle..to]);
            assert_eq!(sum.value(), slow_crc64(&bytes[from..to]), "{from}..{to}");
        }
    }

    #[test]
    fn parts_are_summed_side_by_side() {
        let bytes: Vec<u8> = (0..5000u32).map(|n| (n * 7 + n / 9) as u8).collect();
        for at in [0, 1, 8, 1023, 4096, 5000] {
            let (first, second) = (slow_crc64(&bytes[..at]), slow_crc64(&bytes[at..]));
            assert_eq!(Crc64::joined(first, second, (5000 - at) as u64), slow_crc64(&bytes), "{at}");
        }
    }
}
