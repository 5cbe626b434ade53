//! A vector as text: its numbers as little-endian `f32`, in base64 without padding. That is half as long as decimals, and
//! exact.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(super) fn encode(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=three.len()].copy_from_slice(three);
        let group = u32::from_be_bytes(group);
        // So many bytes, and one digit more.
        for place in 0..=three.len() {
            text.push(char::from(DIGITS[((group >> (18 - 6 * place)) & 63) as usize]));
        }
    }
    text
}

/// The vector of a text that [`encode`] gave; `None` for any other.
pub(super) fn decode(text: &str) -> Option<Vec<f32>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    for four in text.as_bytes().chunks(4) {
        let mut group = 0;
        for place in 0..4 {
            group = (group << 6) | four.get(place).map_or(Some(0), |byte| digit(*byte))?;
        }
        bytes.extend_from_slice(&u32::to_be_bytes(group)[1..four.len()]);
    }
    let (numbers, rest) = bytes.as_chunks::<4>();
    (rest.is_empty() && !numbers.is_empty()).then(|| numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
}

fn digit(byte: u8) -> Option<u32> {
    let digit = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(digit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_exactly() {
        for n in 1..10 {
            let vector: Vec<f32> = (0..n).map(|n| (n as f32 - 2.5) / 3.0).collect();
            assert_eq!(decode(&encode(&vector)), Some(vector));
        }
        assert_eq!(encode(&[1.0, -0.5]), "AACAPwAAAL8");
    }

    #[test]
    fn other_texts_are_no_vectors() {
        for text in ["", "A", "AACAP", "AACA Pw", "AACAPw==", "é"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
