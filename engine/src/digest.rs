//! Digests of tables: per row, then summed, so that they depend on neither order nor file layout.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Field, Schema},
};

use crate::{failure::Failure, key::float_bits};

/// Metadata key of a field that stays out of row digests (`uri`: it says where a blob lies, not what it holds).
const UNDIGESTED: &str = "ingrain.undigested";

/// Leaves a column out of row digests.
pub fn undigested(field: Field) -> Field {
    field.with_metadata([(UNDIGESTED.to_owned(), "true".to_owned())].into())
}

/// The multiset of the rows seen so far: a sum of row hashes modulo 2^128, and their number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowsDigest {
    sum: u128,
    /// Number of rows.
    pub rows: u64,
}

impl RowsDigest {
    /// Adds every row of `batch`. A row's hash covers its columns in schema order, typed and length-delimited.
    ///
    /// # Errors
    /// When a column has a type that tables here can't have.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let schema = batch.schema();
        let columns: Vec<&ArrayRef> = batch
            .columns()
            .iter()
            .zip(schema.fields())
            .filter(|(_, field)| !field.metadata().contains_key(UNDIGESTED))
            .map(|(column, _)| column)
            .collect();
        let mut bytes = Vec::with_capacity(4096);
        for row in 0..batch.num_rows() {
            bytes.clear();
            for column in &columns {
                encode_value(column, row, &mut bytes)?;
            }
            let hash = blake3::hash(&bytes);
            let mut first = [0; 16];
            first.copy_from_slice(&hash.as_bytes()[..16]);
            self.sum = self.sum.wrapping_add(u128::from_le_bytes(first));
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Adds the rows of another part of the same table.
    pub fn merge(&mut self, other: Self) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.rows += other.rows;
    }

    /// The digest of a part, as text that [`Self::parse`] reads back.
    pub fn to_text(self) -> String {
        format!("{:032x}-{}", self.sum, self.rows)
    }

    /// Reads [`Self::to_text`].
    pub fn parse(text: &str) -> Option<Self> {
        let (sum, rows) = text.split_once('-')?;
        Some(Self { sum: u128::from_str_radix(sum, 16).ok()?, rows: rows.parse().ok()? })
    }

    /// The digest of a whole table: its rows with its schema (names and types), 64 hex digits.
    pub fn of_table(self, schema: &Schema) -> String {
        let columns: Vec<serde_json::Value> =
            schema.fields().iter().map(|field| serde_json::json!([field.name(), field.data_type().to_string()])).collect();
        crate::key::key("table", &serde_json::json!({ "schema": columns, "rows": self.to_text() }))
    }
}

fn delimited(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn encode_value(array: &dyn Array, row: usize, out: &mut Vec<u8>) -> Result<(), Failure> {
    use arrow::datatypes as t;
    if array.is_null(row) {
        out.push(0);
        return Ok(());
    }
    out.push(1);
    macro_rules! primitive {
        ($type:ty) => {
            out.extend(array.as_primitive::<$type>().value(row).to_le_bytes())
        };
    }
    match array.data_type() {
        DataType::Utf8 => delimited(array.as_string::<i32>().value(row).as_bytes(), out),
        DataType::LargeUtf8 => delimited(array.as_string::<i64>().value(row).as_bytes(), out),
        DataType::Binary => delimited(array.as_binary::<i32>().value(row), out),
        DataType::Boolean => out.push(u8::from(array.as_boolean().value(row))),
        DataType::Int8 => primitive!(t::Int8Type),
        DataType::Int16 => primitive!(t::Int16Type),
        DataType::Int32 | DataType::Date32 => {
            let value = if let Some(ints) = array.as_primitive_opt::<t::Int32Type>() {
                ints.value(row)
            } else {
                array.as_primitive::<t::Date32Type>().value(row)
            };
            out.extend(value.to_le_bytes());
        }
        DataType::Int64 => primitive!(t::Int64Type),
        DataType::UInt8 => primitive!(t::UInt8Type),
        DataType::UInt16 => primitive!(t::UInt16Type),
        DataType::UInt32 => primitive!(t::UInt32Type),
        DataType::UInt64 => primitive!(t::UInt64Type),
        DataType::Float32 => {
            let value = f64::from(array.as_primitive::<t::Float32Type>().value(row));
            out.extend(float_bits(value).to_le_bytes());
        }
        DataType::Float64 => out.extend(float_bits(array.as_primitive::<t::Float64Type>().value(row)).to_le_bytes()),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            out.extend((items.len() as u64).to_le_bytes());
            for item in 0..items.len() {
                encode_value(&items, item, out)?;
            }
        }
        DataType::Struct(_) => {
            for column in array.as_struct().columns() {
                encode_value(column, row, out)?;
            }
        }
        other => match other {
            DataType::Date64 | DataType::Timestamp(_, _) | DataType::Decimal128(_, _) | DataType::Time64(_) => {
                let text = arrow::util::display::array_value_to_string(array, row)?;
                delimited(text.as_bytes(), out);
            }
            other => {
                return Err(Failure::data(format!("a column of type `{other}` can't be written"))
                    .hint("cast it to text, a number, a boolean, a date or a list of these"));
            }
        },
    }
    Ok(())
}

/// Adds to `sizes` the bytes that every row of `array` holds: text and list content by length, all else by width.
pub(crate) fn add_row_sizes(array: &dyn Array, sizes: &mut [u64]) {
    match array.data_type() {
        DataType::Utf8 => {
            for (size, window) in sizes.iter_mut().zip(array.as_string::<i32>().value_offsets().windows(2)) {
                *size += (window[1] - window[0]) as u64 + 4;
            }
        }
        DataType::LargeUtf8 => {
            for (size, window) in sizes.iter_mut().zip(array.as_string::<i64>().value_offsets().windows(2)) {
                *size += (window[1] - window[0]) as u64 + 8;
            }
        }
        DataType::Binary => {
            for (size, window) in sizes.iter_mut().zip(array.as_binary::<i32>().value_offsets().windows(2)) {
                *size += (window[1] - window[0]) as u64 + 4;
            }
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let mut items = vec![0; list.values().len()];
            add_row_sizes(list.values(), &mut items);
            for (size, window) in sizes.iter_mut().zip(list.value_offsets().windows(2)) {
                *size += items[window[0] as usize..window[1] as usize].iter().sum::<u64>() + 4;
            }
        }
        DataType::Struct(_) => {
            for column in array.as_struct().columns() {
                add_row_sizes(column, sizes);
            }
        }
        other => {
            let width = other.primitive_width().unwrap_or(1) as u64;
            for size in sizes.iter_mut() {
                *size += width;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, StringArray};

    use super::*;

    fn batch(ids: &[&str], numbers: &[Option<i32>]) -> RecordBatch {
        RecordBatch::try_from_iter([
            ("id", Arc::new(StringArray::from(ids.to_vec())) as ArrayRef),
            ("n", Arc::new(Int32Array::from(numbers.to_vec())) as ArrayRef),
        ])
        .expect("two columns of one length")
    }

    fn digest(batches: &[RecordBatch]) -> RowsDigest {
        let mut digest = RowsDigest::default();
        for batch in batches {
            digest.add(batch).expect("known types");
        }
        digest
    }

    #[test]
    fn order_and_layout_do_not_count_but_content_and_multiplicity_do() {
        let whole = digest(&[batch(&["a", "b", "c"], &[Some(1), None, Some(3)])]);
        let split = digest(&[batch(&["c"], &[Some(3)]), batch(&["b", "a"], &[None, Some(1)])]);
        assert_eq!(whole, split);
        assert_ne!(whole, digest(&[batch(&["a", "b", "c"], &[Some(1), Some(0), Some(3)])]));
        assert_ne!(digest(&[batch(&["a"], &[None])]), digest(&[batch(&["a", "a"], &[None, None])]));
        assert_eq!(RowsDigest::parse(&whole.to_text()), Some(whole));
    }

    #[test]
    fn a_null_differs_from_an_empty_text_and_cells_are_delimited() {
        let pair = |a: Option<&str>, b: Option<&str>| {
            let batch = RecordBatch::try_from_iter_with_nullable([
                ("a", Arc::new(StringArray::from(vec![a])) as ArrayRef, true),
                ("b", Arc::new(StringArray::from(vec![b])) as ArrayRef, true),
            ])
            .expect("two columns");
            digest(&[batch])
        };
        assert_ne!(pair(None, Some("x")), pair(Some(""), Some("x")));
        assert_ne!(pair(Some("ab"), Some("c")), pair(Some("a"), Some("bc")));
    }
}
