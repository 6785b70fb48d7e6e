//! Tensors as the columns of a row: names, types, shapes and little-endian bytes.

use cloud_sync::rows::Column;
use engine::{Data, Tensor, Tensors, binary};
use serde_bytes::ByteBuf;

/// The columns of one row: everything, or the part at `index` of the batch dimension.
pub(super) fn of(tensors: &Tensors, index: Option<u64>) -> Vec<Column> {
    tensors.iter().map(|(name, tensor)| column(name, tensor, index)).collect()
}

/// About how many bytes the tensors hold.
pub(super) fn bytes(tensors: &Tensors) -> usize {
    tensors.iter().map(|(_, tensor)| size(tensor.data())).sum()
}

fn column(name: &str, tensor: &Tensor, index: Option<u64>) -> Column {
    let shape = tensor.shape();
    let (shape, elements) = match (index.and_then(|index| usize::try_from(index).ok()), shape.split_first()) {
        (Some(index), Some((rows, inner))) if *rows > 0 => {
            let stride = tensor.len() / rows;
            (inner, index.saturating_mul(stride)..index.saturating_add(1).saturating_mul(stride))
        }
        _ => (shape, 0..tensor.len()),
    };
    let mut data = Vec::new();
    binary::write_range(tensor, elements, &mut data);
    Column {
        name: name.to_owned(),
        datatype: tensor.data_type().oip_name().to_owned(),
        shape: shape.iter().map(|length| *length as u64).collect(),
        data: ByteBuf::from(data),
    }
}

fn size(data: &Data) -> usize {
    match data {
        Data::F32(values) => values.len() * 4,
        Data::F64(values) => values.len() * 8,
        Data::F16(values) => values.len() * 2,
        Data::I8(values) => values.len(),
        Data::I16(values) => values.len() * 2,
        Data::I32(values) => values.len() * 4,
        Data::I64(values) => values.len() * 8,
        Data::U8(values) => values.len(),
        Data::U16(values) => values.len() * 2,
        Data::U32(values) => values.len() * 4,
        Data::U64(values) => values.len() * 8,
        Data::Bool(values) => values.len(),
        Data::String(values) => values.iter().map(|value| value.len() + 4).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_part_of_the_batch() {
        let tensors: Tensors =
            [("x", Tensor::from_vec(vec![2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap())]
                .into_iter()
                .collect();
        let row = &of(&tensors, Some(1))[0];
        assert_eq!(row.shape, [3]);
        let expected: Vec<u8> = [4f32, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(row.data.as_ref(), expected);
        assert_eq!(of(&tensors, None)[0].shape, [2, 3]);
    }

    #[test]
    fn strings_carry_their_lengths() {
        let tensors: Tensors =
            [("s", Tensor::from_vec(vec![2], vec!["ab".to_owned(), String::new()]).unwrap())]
                .into_iter()
                .collect();
        assert_eq!(of(&tensors, None)[0].data.as_ref(), b"\x02\0\0\0ab\0\0\0\0");
    }
}
