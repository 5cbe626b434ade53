//! Widths of letters in composite fonts. The extractor takes a range of letters of one width for a single letter, and then
//! every letter of the range for one of another width, so that words fall apart: here ranges are spelt out before it looks.

use pdf_extract::{Dictionary, Document as Pdf, Object};

/// A font has no more letters than this.
const MOST_LETTERS: usize = 1 << 16;

/// Spells the ranges out in all fonts. What isn't as it should be stays as it is.
pub(super) fn spell_out_widths(pdf: &mut Pdf) {
    let read: &Pdf = pdf;
    let spelt = read.objects.iter().filter_map(|(id, object)| {
        let font = object.as_dict().ok()?;
        let subtype = font.get_deref(b"Subtype", read).and_then(Object::as_name).ok()?;
        let width = font.get(b"DW").ok().and_then(|width| number(read, width));
        matches!(subtype, b"CIDFontType0" | b"CIDFontType2").then(|| (*id, widths(read, font), width))
    });
    let spelt: Vec<_> = spelt.collect();
    for (id, widths, width) in spelt {
        let Ok(font) = pdf.get_object_mut(id).and_then(Object::as_dict_mut) else { continue };
        if let Some(widths) = widths {
            font.set("W", widths);
        }
        if let Some(width) = width {
            font.set("DW", width.round() as i64);
        }
    }
}

/// The font's widths as a list of first letters and the widths from there on.
fn widths(pdf: &Pdf, font: &Dictionary) -> Option<Vec<Object>> {
    let mut listed = font.get_deref(b"W", pdf).and_then(Object::as_array).ok()?.iter();
    let mut spelt = Vec::new();
    let mut letters = 0;
    while let Some(first) = listed.next() {
        let first = number(pdf, first)? as i64;
        let (_, next) = pdf.dereference(listed.next()?).ok()?;
        let widths = if let Object::Array(widths) = next {
            widths.iter().map(|width| number(pdf, width)).collect::<Option<Vec<_>>>()?
        } else {
            let count = (number(pdf, next)? as i64).saturating_sub(first).saturating_add(1);
            let count = usize::try_from(count).ok()?;
            let width = number(pdf, listed.next()?)?;
            if count > MOST_LETTERS {
                return None;
            }
            vec![width; count]
        };
        letters += widths.len();
        if letters > MOST_LETTERS {
            return None;
        }
        spelt.push(Object::Integer(first));
        spelt.push(Object::Array(widths.into_iter().map(Object::Real).collect()));
    }
    Some(spelt)
}

fn number(pdf: &Pdf, object: &Object) -> Option<f32> {
    pdf.dereference(object).ok()?.1.as_float().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_spelt_out() {
        let integers = |numbers: &[i64]| numbers.iter().map(|number| Object::Integer(*number)).collect::<Vec<_>>();
        let font = |widths: Vec<Object>| {
            let mut font = Dictionary::new();
            font.set("Subtype", Object::Name(b"CIDFontType2".to_vec()));
            font.set("DW", Object::Real(499.6));
            font.set("W", widths);
            font
        };
        let mut pdf = Pdf::new();
        let list = pdf.add_object(integers(&[250, 333]));
        let mixed = [integers(&[3]), vec![Object::Reference(list)], integers(&[19, 21, 500])].concat();
        let good = pdf.add_object(font(mixed));
        let endless = pdf.add_object(font(integers(&[0, 1 << 40, 500])));
        spell_out_widths(&mut pdf);
        let of = |id, key: &[u8]| pdf.get_dictionary(id).unwrap().get(key).unwrap().clone();
        let reals = |numbers: &[f32]| Object::Array(numbers.iter().map(|number| Object::Real(*number)).collect());
        let expected = vec![Object::Integer(3), reals(&[250.0, 333.0]), Object::Integer(19), reals(&[500.0, 500.0, 500.0])];
        assert_eq!(of(good, b"W"), Object::Array(expected));
        assert_eq!(of(good, b"DW"), Object::Integer(500));
        assert_eq!(of(endless, b"W"), Object::Array(integers(&[0, 1 << 40, 500])));
    }
}
